"""The table of products as a recommender reads it: which product is of which type, and what may be recommended.

A type that the model does not know counts as the type that stands for its category; a product with neither has no
place, is never recommended, and what was bought of it says nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from consumer.records import Event

__all__ = ["NEW_MS", "Catalogue"]

NEW_MS = 30 * 86_400_000
"""A product counts as new for so long after it came into the catalogue, by the time of the event."""


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Where products stand, as of one moment; whether one may be recommended is asked of the table as it is now."""

    table: Mapping[str, Event]
    """Product -> row of the schema `product`; changes while we look."""
    types: list[str]
    """Place -> the type's name."""
    slots: Mapping[str, int]
    """Product -> place of its type in the model's vocabulary; also for products that are not available."""
    shelves: Mapping[int, list[str]]
    """Place -> its available products, the most popular first."""
    arrivals: Mapping[int, list[str]]
    """Place -> those of them that say when they were added, the latest first."""
    barred: npt.NDArray[np.bool_] = field(repr=False)
    """Places of which nothing is available (types,)."""

    @classmethod
    def of(
        cls, table: Mapping[str, Event], types: Mapping[str, int], categories: Mapping[str, int]
    ) -> Catalogue:
        """Read the whole table: about 1 us a product.  `types` and `categories` give places."""
        rows = dict(table)
        slots: dict[str, int] = {}
        shelves: dict[int, list[str]] = {}
        arrivals: dict[int, list[str]] = {}
        for product, row in rows.items():
            slot = types.get(row["type"], categories.get(row["category"]))
            if slot is None:
                continue
            slots[product] = slot
            if row["available"]:
                shelves.setdefault(slot, []).append(product)
                if row["added_at"] is not None:
                    arrivals.setdefault(slot, []).append(product)
        for shelf in shelves.values():
            shelf.sort(key=lambda product: (-rows[product]["popularity"], product))
        for shelf in arrivals.values():
            shelf.sort(key=lambda product: (-rows[product]["added_at"], product))
        barred = np.ones(len(types), dtype=np.bool_)
        barred[list(shelves)] = False
        return cls(table, list(types), slots, shelves, arrivals, barred)

    def row(self, product: str) -> Event | None:
        """The product's row where it may be recommended."""
        row = self.table.get(product)
        return row if row is not None and row["available"] and product in self.slots else None

    def first(self, slot: int) -> Event | None:
        """The most popular product of a type; None where all have been withdrawn a moment ago."""
        return next(filter(None, map(self.row, self.shelves.get(slot, ()))), None)

    def arrival(self, slot: int, now_ms: int) -> Event | None:
        """The latest product of a type that is new at `now_ms`."""
        for row in filter(None, map(self.row, self.arrivals.get(slot, ()))):
            if row["added_at"] is not None and 0 <= now_ms - row["added_at"] <= NEW_MS:
                return row
        return None
