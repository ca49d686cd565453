"""Task `recommend`: what a customer may want to buy again, and what may be new to them, at each of their clicks.

Every click gets one answer, also views and carts: the customer is here now. Only purchases are remembered. The type of
the product that the click is about is in neither list: the customer has it before their eyes or in the bag.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from consumer.catalogue import Catalogue
from consumer.errors import BadRecord, Fatal
from consumer.exits import Exit
from consumer.models.recommend import WEIGHTS, load_recommend
from consumer.purchases import DAY_S, FEATURES, MAX_PRODUCTS, Bought, Profile, profile, remember
from consumer.records import Event
from consumer.task import Budget, Device, Item, State
from consumer.torch_task import TorchTask

__all__ = ["RecommendTask"]

MAX_ID_BYTES = 48
"""Bytes of a product's id in JSON: MAX_PRODUCTS of them, with what is kept of each, stay below 64 KiB."""
MAX_MS = 4_102_444_800_000
"""The first moment of the year 2100: later times, and times before 1970, are mistakes."""
ROWS_AN_EVENT = 2
ROWS_AN_EVENT_CHANGED = 20
"""The catalogue is read anew as often as costs an event so many rows on average; more where its size has changed."""


@dataclass(frozen=True, slots=True)
class Visit:
    """One click, and what its customer bought until then."""

    event: Event
    bought: Bought
    past: Profile
    catalogue: Catalogue


class RecommendTask(TorchTask):
    """The K likeliest products of both kinds, each with a probability and a reason."""

    name = "recommend"
    events = ("click",)
    result = "recommendation"
    fields = ("id", "user", "product", "kind", "time")
    stateful = True
    tables: ClassVar[Mapping[str, str]] = {"products": "product"}
    budget = Budget(max_batch_items=256, max_batch_tokens=65_536)
    example: ClassVar[Event] = {
        "id": "c-20171201-000001",
        "user": "household-1",
        "product": "995242",
        "kind": "purchase",
        "time": 1_512_086_400_000,
    }

    def __init__(self, k: int | str = 10, weights: str | Path = WEIGHTS) -> None:
        """`k`: products in each list; `weights`: a folder that `consumer train recommend` wrote."""
        if not str(k).isdecimal() or not 1 <= int(k) <= 100:
            raise Fatal(f"option k is {k!r}: it must be a whole number from 1 to 100", exit_code=Exit.USAGE)
        self._k = int(k)
        self._weights = Path(weights)
        self._catalogue: Catalogue | None = None
        self._read_events = 0
        self._read_rows = 0

    def load(self, device: Device) -> None:
        super().load(Device(device.name))  # ranking wants fp32, and the model is small

    def build(self, device: torch.device) -> None:
        loaded = load_recommend(self._weights)
        self._model = loaded.model.to(device)
        self._types, self._categories = loaded.slots, loaded.categories
        self._k = min(self._k, len(self._types))
        self.version = loaded.version

    def recall(self, event: Event, state: State) -> Bought:
        """What the customer has bought, this purchase included; forgets the coldest beyond MAX_PRODUCTS."""
        self._refresh()
        bought: Bought = state.get("bought", {})
        if event["kind"] == "purchase" and _fault(event) is None:
            remember(bought, event["product"], event["time"] // 1000)
            state["bought"] = bought
        return dict(bought)

    def _refresh(self) -> None:
        """Read the table anew once in a while."""
        rows = len(self.table["products"])
        self._read_events += 1
        share = ROWS_AN_EVENT if rows == self._read_rows else ROWS_AN_EVENT_CHANGED
        if self._catalogue is None or self._read_events * share >= rows:
            self._read_events, self._read_rows = 0, rows
            self._catalogue = Catalogue.of(self.table["products"], self._types, self._categories)

    def prepare(self, events: Sequence[Event], recalled: Sequence[Any]) -> Sequence[Item | BadRecord]:
        """Visits; an item costs as many tokens as types were bought.  Warm-up has nothing recalled."""
        catalogue = self._catalogue or Catalogue.of({}, self._types, self._categories)
        return [
            _fault(event) or self._item(event, bought or {}, catalogue)
            for event, bought in zip(events, recalled, strict=True)
        ]

    def _item(self, event: Event, bought: Bought, catalogue: Catalogue) -> Item:
        past = profile(bought, event["time"] // 1000, catalogue.slots.get)
        return Item(Visit(event, bought, past, catalogue), max(1, len(past.slots)), 100 * len(bought) + 500)

    def largest(self) -> Item:
        longest = min(MAX_PRODUCTS, len(self._types))
        past = Profile(np.arange(longest, dtype=np.int32), np.ones((longest, FEATURES), dtype=np.float32))
        empty = Catalogue.of({}, self._types, self._categories)
        return Item(Visit(self.example, {}, past, empty), longest, 100 * MAX_PRODUCTS)

    def collate(self, items: Sequence[Visit]) -> Mapping[str, torch.Tensor]:
        types = len(self._types)
        longest = max(1, *(len(visit.past.slots) for visit in items), 1)
        slots = np.full((len(items), longest), types, dtype=np.int64)
        features = np.zeros((len(items), longest, FEATURES), dtype=np.float32)
        barred = np.empty((len(items), types), dtype=np.bool_)
        for row, visit in enumerate(items):
            length = len(visit.past.slots)
            slots[row, :length], features[row, :length] = visit.past.slots, visit.past.features
            barred[row] = visit.catalogue.barred
            at_hand = visit.catalogue.slots.get(visit.event["product"])
            if at_hand is not None:
                barred[row, at_hand] = True
        return {
            name: torch.from_numpy(part)
            for name, part in (("slots", slots), ("features", features), ("barred", barred))
        }

    def forward(self, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Histories -> (batch, K, 5), see `Recommender.forward`."""
        ranked: torch.Tensor = self._model(tensors["slots"], tensors["features"], tensors["barred"], self._k)
        return ranked

    # Reasons need the visit beside its row of numbers, so it takes part in the three steps.

    def stage(self, items: Sequence[Visit]) -> Any:
        return items, super().stage(items)

    def compute(self, staged: Any) -> Any:
        return staged[0], super().compute(staged[1])

    def fetch(self, computed: Any) -> Sequence[Event]:
        rows = super().fetch(computed[1])
        return [_answer(visit, row) for visit, row in zip(computed[0], rows, strict=True)]


def _fault(event: Event) -> BadRecord | None:
    """Why this click is not acceptable."""
    size = len(json.dumps(event["product"], ensure_ascii=False).encode("utf-8", "replace")) - 2
    if not 0 < size <= MAX_ID_BYTES:
        return BadRecord("bad_product", f"field product takes {size} bytes: an id has 1 to {MAX_ID_BYTES}")
    if not 0 <= event["time"] < MAX_MS:
        return BadRecord("bad_time", f"field time is {event['time']}: milliseconds since 1970, before 2100")
    return None


def _answer(visit: Visit, row: Sequence[Sequence[float]]) -> Event:
    slots = [(int(visit.past.slots[int(place)]), chance) for place, chance, *_ in row if chance > 0]
    own: dict[int, list[str]] = {slot: [] for slot, _ in slots}
    for product in visit.bought:
        slot = visit.catalogue.slots.get(product)
        if slot in own:
            own[slot].append(product)
    again = [_again(visit, slot, own[slot], chance) for slot, chance in slots]
    new = [_new(visit, int(slot), chance, int(why)) for _, _, slot, chance, why in row if chance > 0]
    return {
        "user": visit.event["user"],
        "time": visit.event["time"],
        "buy_again": [one for one in again if one is not None],
        "something_new": [one for one in new if one is not None],
        "known_purchases": int(sum(count for count, *_ in visit.bought.values())),
    }


def _again(visit: Visit, slot: int, own: list[str], chance: float) -> Event | None:
    """The customer's `own` product of the type, or where that is gone the most popular one."""
    own.sort(key=lambda product: (-visit.bought[product][2], product))
    times = int(sum(visit.bought[product][0] for product in own))
    last_s = int(max(visit.bought[product][1] for product in own))
    days = max(0, visit.event["time"] // 1000 - last_s) // DAY_S
    often = "once" if times == 1 else f"{times} times"
    when = "today" if days == 0 else "yesterday" if days == 1 else f"{days} days ago"
    usual = next(filter(None, map(visit.catalogue.row, own)), None)
    gone = "" if usual else "; what the customer took is not available"
    return _entry(
        usual or visit.catalogue.first(slot), chance, f"this type was bought {often}, last {when}{gone}"
    )


def _new(visit: Visit, slot: int, chance: float, why: int) -> Event | None:
    """The newest product of the type where there is one that is new, else the most popular one."""
    arrival = visit.catalogue.arrival(slot, visit.event["time"])
    if not len(visit.past.slots):
        reason = "popular with all customers; nothing is known of this one"
    elif why < 0:
        reason = "popular with other customers lately"
    else:
        named = visit.catalogue.types[int(visit.past.slots[why])]
        reason = f"goes with {named.lower()}, which the customer buys"
    return _entry(
        arrival or visit.catalogue.first(slot), chance, f"new in the shop; {reason}" if arrival else reason
    )


def _entry(row: Event | None, chance: float, reason: str) -> Event | None:
    if row is None:
        return None
    return {
        "product": row["id"],
        "name": row["name"],
        "type": row["type"],
        "score": chance,
        "reason": reason,
    }
