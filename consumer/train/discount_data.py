"""Households and campaigns of the Complete Journey data as the discount task would have seen them.

The purchases run through the task's own history, in the order of time; when a campaign begins, the features of the
households that it was sent to are taken down.  So the model learns from exactly what it gets on the stream.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from consumer.local.shop import campaigns, clicks, tables
from consumer.tasks.discount_campaigns import Campaign
from consumer.tasks.discount_history import features, remember

__all__ = ["FIRST", "LAST", "SPLIT", "Pairs", "read_pairs"]

FIRST, SPLIT, LAST = "2017-02-01", "2017-08-01", "2017-12-31"
"""Campaigns used start on FIRST or later and end on LAST or before; those that start from SPLIT on are the test."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """One row for each household that a campaign was sent to; all arrays have the same length."""

    features: npt.NDArray[np.float64]
    """(pairs, FEATURES), as they were when the campaign began."""
    redeemed: npt.NDArray[np.bool_]
    """Whether the household redeemed a coupon of the campaign."""
    campaign: npt.NDArray[np.int64]
    household: npt.NDArray[np.int64]
    test: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.redeemed)


def read_pairs(tick: Callable[[float], None] = lambda share: None) -> Pairs:
    """Takes half a minute.  `tick` is told the share done.  Raises Fatal when the data is missing or altered."""
    loaded = tables("campaigns", "campaign_descriptions", "coupon_redemptions")
    about = loaded["campaign_descriptions"]
    about = about[(about.start_date >= FIRST) & (about.end_date <= LAST)].sort_values(
        ["start_date", "campaign_id"]
    )
    sent = {
        number: sorted(rows.tolist())
        for number, rows in loaded["campaigns"].groupby("campaign_id").household_id
    }
    redeemed = set(
        loaded["coupon_redemptions"][["campaign_id", "household_id"]].itertuples(index=False, name=None)
    )
    rules = {rule.id: rule for rule in map(Campaign.of, campaigns())}
    users = {str(household) for number in about.campaign_id for household in sent[number]}
    stream = clicks(users, browsing=False)
    histories: dict[str, dict[str, Any]] = {user: {} for user in users}
    event = next(stream, None)
    rows = []
    for done, row in enumerate(about.itertuples()):
        rule = rules[str(row.campaign_id)]
        while event is not None and event["time"] < rule.start:
            remember(histories[event["user"]], event)
            event = next(stream, None)
        is_test = str(row.start_date)[:10] >= SPLIT
        for household in sent[row.campaign_id]:
            known = features(histories[str(household)], rule, rule.start)
            rows.append(
                (known, (row.campaign_id, household) in redeemed, row.campaign_id, household, is_test)
            )
        tick((done + 1) / len(about))
    columns = list(zip(*rows, strict=True))
    kinds = (np.float64, np.bool_, np.int64, np.int64, np.bool_)
    return Pairs(*(np.array(column, kind) for column, kind in zip(columns, kinds, strict=True)))
