"""What one customer bought, in bounded room: a dict of what JSON can say, and what a model gets of it.

    {"1095275": [3, 1511827200, 291.1234], ...}
     product    count, last time (s), heat

Heat is the logarithm of the purchases, each weighted by e^(time / DECAY_S): it needs no clock to grow old, does not
depend on the order in which purchases come in, and compares products without knowing what time it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["DAY_S", "DECAY_S", "FEATURES", "MAX_PRODUCTS", "Bought", "Profile", "profile", "remember"]

Bought = dict[str, list[float]]
"""Product -> [count, last time (s), heat]."""

DAY_S = 86_400
DECAY_S = 60 * DAY_S
"""A purchase counts 1/e after so long."""
MAX_PRODUCTS = 800
"""A customer's products beyond that are forgotten, coldest first."""
KEPT = MAX_PRODUCTS * 15 // 16
"""How many stay when some are forgotten: not one at a time, because finding the coldest costs a look at all."""
FEATURES = 6
"""Numbers that describe one type in a history; see `profile`."""


def remember(bought: Bought, product: str, time_s: int) -> None:
    """Add one purchase, in place.  Times may come in any order."""
    age = time_s / DECAY_S
    entry = bought.get(product)
    if entry is None:
        if len(bought) >= MAX_PRODUCTS:
            _forget(bought)
        bought[product] = [1, time_s, round(age, 4)]
        return
    count, last, heat = entry
    warmer = max(heat, age) + math.log1p(math.exp(-abs(heat - age)))
    bought[product] = [count + 1, max(last, time_s), round(warmer, 4)]


def _forget(bought: Bought) -> None:
    coldest = sorted(bought, key=lambda product: (bought[product][2], product))
    for product in coldest[: len(bought) - KEPT]:
        del bought[product]


@dataclass(frozen=True, slots=True)
class Profile:
    """A history as the model reads it: one entry for each type, the last bought first."""

    slots: npt.NDArray[np.int32]
    """Places of the types in the model's vocabulary (types,)."""
    features: npt.NDArray[np.float32]
    """(types, FEATURES): logarithms of 1 + count, decayed count, days since the last purchase, distinct products; then,
    the same for all types of the customer, all decayed counts and the number of types."""


def profile(bought: Mapping[str, list[float]], now_s: int, slot_of: Callable[[str], int | None]) -> Profile:
    """What is known of a customer at `now_s`; products that `slot_of` does not place are left out.

    Purchases after `now_s` count as made then.
    """
    placed = [(slot, entry) for product, entry in bought.items() if (slot := slot_of(product)) is not None]
    if not placed:
        return Profile(np.zeros(0, dtype=np.int32), np.zeros((0, FEATURES), dtype=np.float32))
    slots, place = np.unique([slot for slot, _ in placed], return_inverse=True)
    count, last, heat = np.array([entry for _, entry in placed], dtype=np.float64).T
    weight = count * np.exp(np.minimum(0.0, heat - np.log(count) - now_s / DECAY_S))
    latest = np.zeros(len(slots))
    np.maximum.at(latest, place, last)
    days = np.maximum(0.0, now_s - latest) / DAY_S
    table = np.stack(
        [np.bincount(place, count), np.bincount(place, weight), days, np.bincount(place)], axis=1
    )
    features = np.zeros((len(slots), FEATURES), dtype=np.float32)
    features[:, :4] = np.log1p(table)
    features[:, 4:] = np.log1p([weight.sum(), len(slots)])
    order = np.lexsort((slots, -latest))
    return Profile(slots[order].astype(np.int32), features[order])
