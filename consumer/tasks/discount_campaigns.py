"""Campaigns as the task reads them: checked once, then asked often."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from consumer.records import Event

__all__ = ["DAY_MS", "HOUR_MS", "Campaign", "Campaigns"]

log = logging.getLogger(__name__)

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
MAX_VALID_HOURS = 720
MAX_CANDIDATES = 8
"""Campaigns that are scored for one click; of more, the first by their identity."""


@dataclass(frozen=True, slots=True)
class Campaign:
    """A row of the table `campaigns`; the schema says what the fields mean."""

    id: str
    categories: frozenset[str]
    products: frozenset[str]
    percent: int | None
    amount: int | None
    currency: str
    start: int
    end: int
    valid_ms: int
    budget: int
    shares: int
    cooldown_ms: int
    margin: float
    margin_floor: float
    incremental: float
    contact_cost: int
    least_value: float

    @classmethod
    def of(cls, row: Event) -> Campaign:
        """Raises ValueError, which says what is wrong."""
        problem = _problem(row)
        if problem:
            raise ValueError(problem)
        is_percent = row["kind"] == "percent"
        return cls(
            id=row["id"],
            categories=frozenset(row["categories"]),
            products=frozenset(row["products"]),
            percent=row["value"] if is_percent else None,
            amount=None if is_percent else row["value"],
            currency=row["currency"],
            start=row["start"],
            end=row["end"],
            valid_ms=row["valid_hours"] * HOUR_MS,
            budget=row["budget"],
            shares=row["shares"],
            cooldown_ms=row["cooldown_hours"] * HOUR_MS,
            margin=row["margin"],
            margin_floor=row["margin_floor"],
            incremental=row["incremental"],
            contact_cost=row["contact_cost"],
            least_value=row["least_value"],
        )

    def covers(self, product: str, category: str | None) -> bool:
        return product in self.products if self.products else category in self.categories

    def discount(self, total: int) -> int:
        """What it takes off a total, both in minor units."""
        return min(self.amount, total) if self.amount is not None else total * (self.percent or 0) // 100

    def share(self, partition: int) -> int:
        """The part of the budget that this source partition may spend, in minor units."""
        return self.budget // self.shares if partition < self.shares else 0

    def worth(self, probability: float, total: int) -> float:
        """Expected value of an offer to the shop, in minor units.

        A redemption always costs the discount; it earns the margin only where it is an additional purchase.
        """
        gain = self.incremental * self.margin * total - self.discount(total)
        return round(probability * gain - self.contact_cost, 2)


def _problem(row: Event) -> str:
    checks = {
        "id is longer than 100 bytes": len(row["id"].encode()) > 100,
        "categories is empty": not row["categories"],
        f"value is {row['value']}": row["value"] < 1 or (row["kind"] == "percent" and row["value"] > 100),
        "end is not after start": row["end"] <= row["start"],
        f"budget is {row['budget']}": row["budget"] < 0,
        f"shares is {row['shares']}": row["shares"] < 1,
        f"valid_hours is {row['valid_hours']}": not 1 <= row["valid_hours"] <= MAX_VALID_HOURS,
        f"cooldown_hours is {row['cooldown_hours']}": row["cooldown_hours"] < 0,
        f"contact_cost is {row['contact_cost']}": row["contact_cost"] < 0,
        f"least_value is {row['least_value']}": not math.isfinite(row["least_value"]),
    }
    for name in ("margin", "margin_floor", "incremental"):
        checks[f"{name} is {row[name]}"] = not 0.0 <= row[name] <= 1.0
    return "; ".join(problem for problem, there in checks.items() if there)


@dataclass(slots=True)
class Campaigns:
    """The table's campaigns, each read once; one that makes no sense is left out, with a warning."""

    _known: dict[str, tuple[Event, Campaign | None]] = field(default_factory=dict)

    def running(self, rows: Mapping[str, Event], event: Event) -> tuple[Campaign, ...]:
        """Campaigns that cover the click's product at its time, by identity, MAX_CANDIDATES at most."""
        found = []
        time, currency = event["time"], event.get("currency")
        for key in sorted(rows):
            row = rows.get(key)
            campaign = None if row is None else self._read(key, row)
            if campaign is None or not campaign.start <= time < campaign.end:
                continue
            if currency in (None, campaign.currency) and campaign.covers(
                event["product"], event.get("category")
            ):
                found.append(campaign)
        return tuple(found[:MAX_CANDIDATES])

    def _read(self, key: str, row: Event) -> Campaign | None:
        row_known, campaign = self._known.get(key, (None, None))
        if row_known is row:
            return campaign
        campaign = None
        try:
            if row["id"] != key:
                raise ValueError(f"its record's key is {key!r}")
            campaign = Campaign.of(row)
        except ValueError as error:
            log.warning("campaign %r is not used: %s", row["id"], error)
        self._known[key] = (row, campaign)
        return campaign
