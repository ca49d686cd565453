"""Who gets an offer: expected value under constraints, and the books that hold them.

State of a customer, empty while nothing was offered:

    {"last": time of the last offer, "open": {coupon, campaign, product, since, until, held, percent}}

State of a source partition, which is one share of every campaign's budget:

    {"today": day, "books": {campaign: {"spent": n, "held": {day: n}, "end": time, "due": {day: [offers, sum of their
     probabilities, redeemed]}}}, "settled": {campaign: [offers, sum of probabilities, redeemed]}}

Every offer holds the most that it can cost until it is redeemed or over, so spent + held never exceeds the share.
What is held stands under the day on which it is released at the latest, a day (LATENESS_MS) after the offer's end,
whoever is seen then.  `today` begins with the first offer and goes by the events' time, a day at most for each event:
one wrong date far ahead cannot release what others may still redeem.  With the money of a day goes its row in `due` to
`settled`, and from there into the next decision: all offers of that day at once, whoever came back or not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from consumer.records import Event
from consumer.task import State
from consumer.tasks.discount_campaigns import DAY_MS, Campaign

__all__ = ["Scored", "decide", "settle"]

LATENESS_MS = DAY_MS
"""How far a partition's events may be out of order without an offer's budget being released too early."""
KEPT_MS = 400 * DAY_MS
"""How long the books of a campaign are kept after its end."""


@dataclass(frozen=True, slots=True)
class Scored:
    """A campaign that could be offered, and the model's word on it."""

    campaign: Campaign
    probability: float
    why: Sequence[Event] = ()


def settle(event: Event, state: State) -> None:
    """What this click ends: offers whose time is over, and the customer's own when it is a purchase of the product."""
    _turn(state.partition, event["time"])
    offer = state.get("open")
    if offer is None:
        return
    time = event["time"]
    bought = event["kind"] == "purchase" and event["product"] == offer["product"]
    if bought and offer["since"] <= time <= offer["until"]:
        _close(state, offer, spent=min(offer["held"], _cost(offer, event)), bought=True)
    elif time > offer["until"]:
        _close(state, offer, spent=0, bought=False)


def decide(event: Event, scored: Sequence[Scored], state: State) -> Event:
    """The decision's own fields for a click of kind `cart`; an offer is written into the books."""
    none: Event = {
        "user": event["user"],
        "product": event["product"],
        "decision": "none",
        "cost": 0,
        "time": event["time"],
        "settled": _settled(state.partition),
    }
    if event.get("price") is None:
        return none | {"reason": "no_price"}
    if not scored:
        return none | {"reason": "no_campaign"}
    total = _total(event)
    judged = [(_objection(event, one, total, state), one) for one in scored]
    allowed = [one for objection, one in judged if objection is None] or scored
    best = max(allowed, key=lambda one: one.campaign.worth(one.probability, total))  # the first of equals
    objection = next(objection for objection, one in judged if one is best)
    about = {
        "campaign": best.campaign.id,
        "currency": best.campaign.currency,
        "probability": best.probability,
        "expected_value": best.campaign.worth(best.probability, total),
        "why": list(best.why),
    }
    if objection is not None:
        return none | about | {"reason": objection, "budget_left": room(best.campaign, state)}
    return none | about | _offer(event, best, total, state)


def room(campaign: Campaign, state: State) -> int:
    """What is left of this partition's share, in minor units."""
    book = state.partition.get("books", {}).get(campaign.id, {"spent": 0, "held": {}})
    left: int = campaign.share(state.number) - book["spent"] - sum(book["held"].values())
    return max(0, left)


def _objection(event: Event, one: Scored, total: int, state: State) -> str | None:
    """What speaks against offering this campaign now; None for nothing."""
    campaign, time, last = one.campaign, event["time"], state.get("last")
    discount = campaign.discount(total)
    if "open" in state:
        return "open_offer"
    if last is not None and time - last < campaign.cooldown_ms:
        return "cool_down"
    if _release_day(_until(campaign, time)) <= state.partition.get("today", 0):
        return "late"
    if discount < 1 or campaign.margin * total - discount < campaign.margin_floor * total:
        return "margin_floor"
    if campaign.worth(one.probability, total) <= campaign.least_value:
        return "no_gain"
    return "budget_spent" if discount > room(campaign, state) else None


def _offer(event: Event, best: Scored, total: int, state: State) -> Event:
    campaign, time = best.campaign, event["time"]
    cost = campaign.discount(total)
    coupon, until = f"{campaign.id}/{event['id']}", _until(campaign, time)
    books = state.partition.setdefault("books", {})
    state.partition.setdefault("today", time // DAY_MS)
    book = books.setdefault(campaign.id, {"spent": 0, "held": {}, "end": campaign.end})
    day = str(_release_day(until))
    book["held"][day] = book["held"].get(day, 0) + cost
    book["end"] = max(book["end"], campaign.end)
    due = book.setdefault("due", {}).setdefault(day, [0, 0.0, 0])
    due[:2] = due[0] + 1, round(due[1] + best.probability, 6)
    state["last"] = time
    state["open"] = {
        "coupon": coupon, "campaign": campaign.id, "product": event["product"], "since": time, "until": until,
        "held": cost, "percent": campaign.percent,
    }  # fmt: skip
    return {
        "decision": "offer",
        "reason": "worth_it",
        "coupon": coupon,
        "percent": campaign.percent,
        "amount": None if campaign.amount is None else cost,
        "until": until,
        "cost": cost,
        "budget_left": room(campaign, state),
    }


def _close(state: State, offer: Event, *, spent: int, bought: bool) -> None:
    """End the customer's offer.  One whose money was released already, because its end is long over, costs nothing."""
    del state["open"]
    book, day = state.partition["books"].get(offer["campaign"]), str(_release_day(offer["until"]))
    if book is None or book["held"].get(day, 0) < offer["held"]:
        return
    book["held"][day] -= offer["held"]
    book["spent"] += spent
    if bought and day in book.get("due", {}):
        book["due"][day][2] += 1
    if not book["held"][day]:
        del book["held"][day]


def _turn(partition: dict[str, Any], time: int) -> None:
    """A new day: release what was held for offers that are over, and forget campaigns that ended long ago."""
    today = partition.get("today")
    if today is None or time // DAY_MS <= today:
        return
    partition["today"] = today + 1
    for name, book in list(partition["books"].items()):
        book["held"] = {day: n for day, n in book["held"].items() if int(day) > partition["today"]}
        for day in [day for day in book.get("due", {}) if int(day) <= partition["today"]]:
            sums = partition.setdefault("settled", {}).setdefault(name, [0, 0.0, 0])
            sums[:] = (round(a + b, 6) for a, b in zip(sums, book["due"].pop(day), strict=True))
        if not book["held"] and partition["today"] * DAY_MS > book["end"] + KEPT_MS:
            del partition["books"][name]


def _settled(partition: dict[str, Any]) -> list[Event]:
    """What has come to its end since the last decision; said once."""
    return [
        {"campaign": name, "offers": int(offers), "expected": float(expected), "redeemed": int(redeemed)}
        for name, (offers, expected, redeemed) in partition.pop("settled", {}).items()
    ]


def _until(campaign: Campaign, time: int) -> int:
    return min(time + campaign.valid_ms, campaign.end)


def _release_day(until: int) -> int:
    return (until + LATENESS_MS) // DAY_MS + 1


def _total(event: Event) -> int:
    """Price of all pieces in minor units."""
    return int(event["price"]) * int(event.get("quantity", 1))


def _cost(offer: Event, event: Event) -> int:
    """What a redemption costs: the discount on what was paid; unknown: all that was held."""
    if event.get("price") is None:
        return int(offer["held"])
    total = _total(event)
    return total if offer["percent"] is None else total * int(offer["percent"]) // 100
