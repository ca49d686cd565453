"""What a customer did, in bounded room, and what the discount model gets of it.

    {"from": 0, "first": 0, "seen": 0, "bought": 0, "basket": "s1",
     "sums": [visits, views, carts, spend, coupons, redeemed],
     "categories": {category: [items, spend, coupons]}, "products": {product: [spend, last bought, category]}}

All but the products, which are few, fades with HALF_LIFE_MS.  Sums are kept as they would weigh at `from`, growing
instead of fading, so that a click touches only what it adds to; at reading they are brought to the time of reading.
Times in ms, money in minor units.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from consumer.records import Event
from consumer.tasks.discount_campaigns import DAY_MS, Campaign

__all__ = ["FEATURES", "HALF_LIFE_MS", "MAX_CATEGORIES", "MAX_PRODUCTS", "features", "remember"]

FEATURES = (
    "visits", "spend", "coupons", "redeemed", "recency", "known",
    "category_items", "category_spend", "category_coupons", "product_spend", "campaign_size",
)  # fmt: skip
"""Names of the model's inputs, in their order."""
HALF_LIFE_MS = 180 * DAY_MS
MAX_PRODUCTS = 64
"""The products bought last; with all of them the model did worse."""
MAX_CATEGORIES = 128
BASKET_MS = 1_800_000
"""Purchases without a session belong to one basket when less than this apart."""
MAX_RECENCY_DAYS = 90
MIN_KNOWN_DAYS = 30
"""Hardly anybody in the training data is known for less; below, the logarithm would say far too much."""
COUPON_WORTH = 4
"""Items that a coupon counts for when a category must be forgotten."""
MAX_GROWTH = 16
"""Half-lives after which the sums are brought to the present, before they grow too large."""

VISITS, VIEWS, CARTS, SPEND, COUPONS, REDEEMED = range(6)


def remember(history: dict[str, Any], event: Event) -> None:
    """Add one click, in place.  Late ones weigh as much as they would have in time."""
    time = event["time"]
    if not history:
        history |= {
            "from": time,
            "first": time,
            "seen": time,
            "sums": [0.0] * 6,
            "categories": {},
            "products": {},
        }
    history["first"] = min(history["first"], time)
    history["seen"] = max(history["seen"], time)
    if history["seen"] - history["from"] > MAX_GROWTH * HALF_LIFE_MS:
        _rebase(history)
    weight = 2.0 ** ((time - history["from"]) / HALF_LIFE_MS)
    kind, sums = event["kind"], history["sums"]
    if event.get("campaign") is not None and kind in ("purchase", "other"):
        _add(sums, REDEEMED, weight)
    if kind == "view":
        _add(sums, VIEWS, weight)
    elif kind == "cart":
        _add(sums, CARTS, weight)
    elif kind == "purchase":
        _buy(history, event, weight)


def _buy(history: dict[str, Any], event: Event, weight: float) -> None:
    time, session, sums = event["time"], event.get("session"), history["sums"]
    last = history.get("bought")
    same = (
        history.get("basket") == session
        if session is not None
        else last is not None and abs(time - last) < BASKET_MS
    )
    if not same:
        _add(sums, VISITS, weight)
    history["basket"] = session
    history["bought"] = time if last is None else max(last, time)
    paid = (event.get("price") or 0) * event.get("quantity", 1)
    spend = weight * paid
    coupon = weight if event.get("coupon") is not None else 0.0
    _add(sums, SPEND, spend)
    _add(sums, COUPONS, coupon)
    category = event.get("category")
    if category is not None:
        row = _place(history["categories"], category, MAX_CATEGORIES, [0.0, 0.0, 0.0], _worth)
        for part, more in enumerate((weight, spend, coupon)):
            _add(row, part, more)
    entry = _place(history["products"], event["product"], MAX_PRODUCTS, [0, time, category], _last_bought)
    entry[:] = entry[0] + paid, max(entry[1], time), category


def _add(sums: list[Any], place: int, more: float) -> None:
    sums[place] = round(sums[place] + more, 3)


def _place(rows: dict[str, list[Any]], name: str, most: int, empty: list[Any], worth: Any) -> list[Any]:
    """The row of this name.  For a new one without room the least worthy others go: an eighth, as looking costs."""
    if name not in rows:
        if len(rows) >= most:
            for other in sorted(rows, key=lambda other: (worth(rows[other]), other))[: most // 8]:
                del rows[other]
        rows[name] = empty
    return rows[name]


def _worth(row: list[float]) -> float:
    return row[0] + COUPON_WORTH * row[2]


def _last_bought(row: list[Any]) -> int:
    return int(row[1])


def _rebase(history: dict[str, Any]) -> None:
    fade = 2.0 ** ((history["from"] - history["seen"]) / HALF_LIFE_MS)
    history["from"] = history["seen"]
    history["sums"] = [round(value * fade, 3) for value in history["sums"]]
    for row in history["categories"].values():
        row[:] = [round(value * fade, 3) for value in row]


def features(history: Mapping[str, Any], campaign: Campaign, time: int) -> tuple[float, ...]:
    """FEATURES of a customer (`{}`: never seen) and a campaign at `time`."""
    now = max(time, history.get("seen", time))
    fade = 2.0 ** ((history.get("from", now) - now) / HALF_LIFE_MS)
    sums = history.get("sums", (0.0,) * 6)
    rows = [row for name, row in history.get("categories", {}).items() if name in campaign.categories]
    spent = [row[0] for name, row in history.get("products", {}).items() if campaign.covers(name, row[2])]
    bought = history.get("bought")
    recency = MAX_RECENCY_DAYS if bought is None else min((now - bought) / DAY_MS, MAX_RECENCY_DAYS)
    values = (
        sums[VISITS] * fade,
        sums[SPEND] * fade / 100,
        sums[COUPONS] * fade,
        sums[REDEEMED] * fade,
        recency,
        max((now - history.get("first", now)) / DAY_MS, MIN_KNOWN_DAYS),
        math.fsum(row[0] for row in rows) * fade,
        math.fsum(row[1] for row in rows) * fade / 100,
        math.fsum(row[2] for row in rows) * fade,
        sum(spent) / 100,
        len(campaign.categories),
    )
    return tuple(round(math.log1p(value), 6) for value in values)
