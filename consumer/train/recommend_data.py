"""Purchases for training: what households had bought before a day, and what they bought in the month after it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import track

from consumer.local.shop import goods, tables
from consumer.purchases import Bought, Profile, profile, remember

__all__ = ["Moment", "Purchases", "Vocabulary", "day", "moments", "read_purchases", "vocabulary"]

MIN_HOUSEHOLDS = 20
"""Types that fewer households ever bought are left out, as in the references' protocol."""


@dataclass(frozen=True, slots=True)
class Purchases:
    """Purchases in order of time, one entry each, and the products they are of."""

    household: npt.NDArray[np.int64]
    product: npt.NDArray[np.int64]
    time_s: npt.NDArray[np.int64]
    """The shop's own clock, read as UTC."""
    products: dict[int, dict[str, str]]
    """Product -> its category and type; goods with a type only."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The types that the model knows, and which products are of them."""

    types: list[str]
    categories: dict[str, int]
    """Category -> place of its most bought type."""
    slot_of: dict[int, int]
    """Product -> place of its type."""


@dataclass(frozen=True, slots=True)
class Moment:
    """One household on one day."""

    household: int
    past: Profile
    """From the bounded state, as a worker would have it."""
    seen: npt.NDArray[np.int32]
    """All types ever bought before, also those that the state has forgotten."""
    bought: npt.NDArray[np.int32]
    """Types bought from that day on until the end of the month after it."""


def read_purchases(folder: Path | None = None) -> Purchases:
    """All purchases of goods whose type is known; `folder` has other files of the same form (not checked).

    Raises Fatal where the package is missing or its files are not the expected ones.
    """
    loaded = tables("transactions", "products", folder=folder)
    named, bought = goods(loaded["products"]), loaded["transactions"]
    columns = (named[name].tolist() for name in ("product_id", "product_category", "product_type"))
    products = {i: {"category": category, "type": kind} for i, category, kind in zip(*columns, strict=True)}
    bought = bought[bought.product_id.isin(products)]
    time_s = bought.transaction_timestamp.to_numpy().astype("datetime64[s]").astype(np.int64)
    order = np.argsort(time_s, kind="stable")
    household, product = (bought[name].to_numpy() for name in ("household_id", "product_id"))
    return Purchases(household[order], product[order], time_s[order], products)


def day(text: str) -> int:
    """`2017-11-01` -> seconds since 1970, UTC."""
    return int(np.datetime64(text, "s").astype(np.int64))


def vocabulary(purchases: Purchases) -> Vocabulary:
    """Types that at least MIN_HOUSEHOLDS households bought, in alphabetical order."""
    names = np.unique([row["type"] for row in purchases.products.values()])
    place = {name: i for i, name in enumerate(names.tolist())}
    ids, inverse = np.unique(purchases.product, return_inverse=True)
    of = np.array([place[purchases.products[i]["type"]] for i in ids.tolist()])
    pairs = np.unique(np.stack([of[inverse], purchases.household], 1), axis=0)
    households = np.bincount(pairs[:, 0], minlength=len(names))
    known = np.flatnonzero(households >= MIN_HOUSEHOLDS)
    slots = {name: slot for slot, name in enumerate(names[known].tolist())}
    slot_of = {i: slots[row["type"]] for i, row in purchases.products.items() if row["type"] in slots}
    best: dict[str, int] = {}
    for row in purchases.products.values():
        slot = slots.get(row["type"])
        if slot is not None and row["category"]:
            other = best.get(row["category"], slot)
            best[row["category"]] = min((other, slot), key=lambda s: (-households[known[s]], s))
    return Vocabulary(list(slots), dict(sorted(best.items())), slot_of)


def moments(
    purchases: Purchases, words: Vocabulary, windows: Sequence[tuple[int, int]]
) -> Iterator[list[Moment]]:
    """For each window (start and end in seconds, in order of start) all households that had bought something.

    The histories come from the same bounded state that a worker keeps, fed purchase by purchase.
    """
    products = {i: str(i) for i in purchases.products}
    slot_of = {products[i]: slot for i, slot in words.slot_of.items()}
    states: dict[int, Bought] = {}
    ever: dict[int, set[int]] = {}
    fed = 0
    for start, end in track(windows, "replaying purchases", console=Console(stderr=True)):
        stop, after = np.searchsorted(purchases.time_s, [start, end]).tolist()
        for household, product, time_s in _rows(purchases, fed, stop):
            remember(states.setdefault(household, {}), products[product], time_s)
        _add_types(ever, words, purchases, fed, stop)
        later: dict[int, set[int]] = {}
        _add_types(later, words, purchases, stop, after)
        fed = stop
        yield [
            Moment(
                household,
                profile(states[household], start, slot_of.get),
                np.array(sorted(ever[household]), dtype=np.int32),
                np.array(sorted(later.get(household, ())), dtype=np.int32),
            )
            for household in sorted(ever)
        ]


def _rows(purchases: Purchases, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Household, product and time of some purchases."""
    columns = (purchases.household, purchases.product, purchases.time_s)
    return zip(*(column[start:stop].tolist() for column in columns), strict=True)


def _add_types(
    into: dict[int, set[int]], words: Vocabulary, purchases: Purchases, start: int, stop: int
) -> None:
    """Add the types that households bought in some purchases."""
    for household, product, _ in _rows(purchases, start, stop):
        slot = words.slot_of.get(product)
        if slot is not None:
            into.setdefault(household, set()).add(slot)
