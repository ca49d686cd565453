"""Task `discount`: does this customer get a discount on what went into the cart, and which?

Every click updates what is known of its customer; each of kind `cart` gets a decision.  `recall` says what the past
has to say about the campaigns that fit, the model how probable a redemption is, `finish` decides and keeps the books.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from consumer.errors import BadRecord, Fatal
from consumer.models.discount import WEIGHTS, load_discount
from consumer.records import Event
from consumer.task import Budget, Device, Item, State, Task
from consumer.tasks.discount_campaigns import MAX_CANDIDATES, Campaign, Campaigns
from consumer.tasks.discount_history import FEATURES, features, remember
from consumer.tasks.discount_offers import Scored, decide, settle

__all__ = ["DiscountTask", "flaw"]

Candidate = tuple[Campaign, tuple[float, ...]]

MAX_TOTAL = 10**12
"""Largest price of a click, all pieces together, in minor units."""
NAMES = {**dict.fromkeys(("id", "user", "product", "session", "category", "campaign"), 100), "coupon": 220}
"""Field -> how long it may be in UTF-8 bytes; a coupon of ours is made of a campaign and an id."""
MAX_TIME_MS = 253_402_300_799_999
"""The last millisecond of the year 9999."""
FACTS = 3
"""How many facts a decision names."""
WORDS: Mapping[str, tuple[str, str]] = {
    "visits": ("buys rarely", "buys often"),
    "spend": ("spends little", "spends much"),
    "coupons": ("seldom uses coupons", "often uses coupons"),
    "redeemed": ("has redeemed few of our campaigns", "has redeemed our campaigns before"),
    "recency": ("bought a short time ago", "has not bought for a while"),
    "known": ("is known for a short time", "is known for long"),
    "category_items": (
        "buys little of what the campaign is about",
        "buys much of what the campaign is about",
    ),
    "category_spend": (
        "spends little on what the campaign is about",
        "spends much on what the campaign is about",
    ),
    "category_coupons": ("seldom uses coupons for such products", "often uses coupons for such products"),
    "product_spend": (
        "lately bought little of the campaign's products",
        "lately bought the campaign's products",
    ),
    "campaign_size": ("the campaign is about few categories", "the campaign is about many categories"),
}
"""Feature -> what is said of a customer below and above the average of the training data."""


@dataclass(frozen=True, slots=True)
class Judged:
    """Model output for one candidate."""

    probability: float
    contributions: tuple[float, ...]
    standard: tuple[float, ...]


class DiscountTask(Task):
    """A decision on each click of kind `cart`; none for others."""

    name = "discount"
    events = ("click",)
    result = "discount_decision"
    on_device = True
    stateful = True
    tables: ClassVar[Mapping[str, str]] = {"campaigns": "campaign"}
    budget: ClassVar[Budget] = Budget(max_batch_items=4_096)
    example: ClassVar[Event] = {
        "id": "c-0000000000001",
        "user": "u-00000042",
        "product": "p-0000000000017",
        "kind": "cart",
        "time": 1_700_000_000_000,
        "session": "s-0000000000007",
        "category": "YOGURT",
        "price": 299,
        "quantity": 2,
        "currency": "USD",
        "coupon": None,
        "campaign": None,
    }

    def __init__(self, weights: str | Path = WEIGHTS) -> None:
        """`weights` is a folder that `consumer train discount` wrote."""
        self._weights = Path(weights)
        self._campaigns = Campaigns()
        self.table: Mapping[str, Mapping[str, Event]] = {"campaigns": {}}

    def load(self, device: Device) -> None:
        """On the CPU whatever the device: to copy a dozen numbers there would take longer than to add them up."""
        loaded = load_discount(self._weights)
        if loaded.features != FEATURES:
            raise Fatal(f"the weights in {self._weights} are for other features; train them anew")
        self._model, self.version = loaded.model, loaded.version

    def recall(self, event: Event, state: State) -> Sequence[Candidate]:
        """Take the click into the customer's history; for a cart, the campaigns that fit and their features.

        The history that a cart is judged by is the one before it.
        """
        if flaw(event):
            return ()
        candidates: Sequence[Candidate] = ()
        if event["kind"] == "cart" and event.get("price") is not None:
            running = self._campaigns.running(self.table["campaigns"], event)
            candidates = [(campaign, features(state, campaign, event["time"])) for campaign in running]
        remember(state, event)
        return candidates

    def prepare(self, events: Sequence[Event], recalled: Sequence[Any]) -> Sequence[Item | BadRecord]:
        return [
            flaw(event) or Item(candidates or (), tokens=max(1, len(candidates or ())))
            for event, candidates in zip(events, recalled, strict=True)
        ]

    def largest(self) -> Item:
        row = [0.0] * len(FEATURES)
        return Item([(None, row)] * MAX_CANDIDATES, tokens=MAX_CANDIDATES)

    @torch.inference_mode()
    def run(self, items: Sequence[Sequence[Candidate]]) -> Sequence[list[tuple[Campaign, Judged]]]:
        """Candidates of each click -> the same with what the model says of them."""
        rows = [row for item in items for _, row in item]
        if not rows:
            return [[] for _ in items]
        x = torch.tensor(rows, dtype=torch.float64)
        judged = zip(
            torch.sigmoid(self._model.odds(x)).tolist(),
            self._model(x).tolist(),
            self._model.standard(x).tolist(),
            strict=True,
        )
        # rounded, so that the last bits, which may depend on the batch, cannot change a decision
        return [
            [
                (campaign, Judged(round(p, 6), tuple(c), tuple(z)))
                for (campaign, _), (p, c, z) in zip(item, judged, strict=False)
            ]
            for item in items
        ]

    def finish(self, event: Event, output: Sequence[tuple[Campaign, Judged]], state: State) -> Event | None:
        settle(event, state)
        if event["kind"] != "cart":
            return None
        scored = [Scored(campaign, one.probability, _why(one)) for campaign, one in output]
        return decide(event, scored, state)


def flaw(event: Event) -> BadRecord | None:
    """What makes a click unusable; None for nothing."""
    long = [n for n, most in NAMES.items() if event.get(n) is not None and len(event[n].encode()) > most]
    price, quantity = event.get("price"), event.get("quantity", 1)
    problem = ""
    if long:
        problem = f"{long[0]} is longer than {NAMES[long[0]]} bytes"
    elif not 0 <= event["time"] <= MAX_TIME_MS:
        problem = f"time {event['time']} is not between the years 1970 and 9999"
    elif quantity < 1:
        problem = f"quantity is {quantity}"
    elif price is not None and not 0 <= price * quantity <= MAX_TOTAL:
        problem = f"price {price} x quantity {quantity} is not between 0 and {MAX_TOTAL:,}"
    return BadRecord("bad_click", problem, stage="prepare") if problem else None


def _why(one: Judged) -> list[Event]:
    order = sorted(range(len(FEATURES)), key=lambda n: (-abs(one.contributions[n]), n))[:FACTS]
    return [
        {
            "feature": FEATURES[n],
            "words": WORDS[FEATURES[n]][one.standard[n] > 0],
            "contribution": round(one.contributions[n], 4),
        }
        for n in order
    ]
