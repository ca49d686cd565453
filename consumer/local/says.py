"""Results of the shipped tasks in a line of plain words, for the demo.  Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime

from consumer.records import Event

__all__ = ["answer", "discount", "finest", "image", "insight", "readable", "recommend", "spam"]

_AGAINST = {
    "no_price": "the click has no price",
    "no_campaign": "no campaign covers it now",
    "open_offer": "another offer is still open",
    "cool_down": "the last offer is too recent",
    "late": "the click is too old",
    "margin_floor": "too little margin would be left",
    "budget_spent": "the budget is used up",
    "no_gain": "it would bring no gain",
}
_MOST = 3


def spam(result: Event, subject: str) -> str | None:
    """`spam 99.2 %  Cheap toner`; None where the subject cannot be read."""
    shown = readable(subject)
    return None if shown is None else f"{result['label']:<4} {100 * result['probability']:5.1f} %  {shown}"


def discount(result: Event, category: str) -> str:
    """The decision, and what decided."""
    about = f"{category.lower()} for customer {result['user']}"
    if result["decision"] == "none":
        return f"none on {about}: {_AGAINST.get(result['reason'], result['reason'])}"
    money = result["currency"] or ""
    size = f"{result['percent']} %" if result["percent"] else f"{result['amount'] / 100:.2f} {money}"
    until = datetime.fromtimestamp(result["until"] / 1000, UTC)
    why = next((one["words"] for one in result["why"] if one["contribution"] > 0), "worth it")
    chance = f"{100 * result['probability']:.0f} % likely to redeem"
    return (
        f"{size} off {about} until {until:%d %b}, {result['cost'] / 100:.2f} {money} at most: {chance}, {why}"
    )


def recommend(result: Event, category: str) -> str:
    """Who is where in the shop, and the first of both lists."""
    again, new = (_products(result[name]) for name in ("buy_again", "something_new"))
    who = f"customer {result['user']} at {category.lower()}"
    if not result["buy_again"]:
        return f"{who}, not known yet; popular: {new}"
    return f"{who}, again: {again}; new: {new}"


def image(result: Event, media_type: str) -> str:
    """The objects found, of a video also when."""
    if result["kind"] == "video":
        seen = [
            f"{one['label']} {one['first_ms'] / 1000:.0f}-{one['last_ms'] / 1000:.0f} s ({100 * one['score']:.0f} %)"
            for one in result["seen"][:_MOST]
        ]
        seconds = (result["duration_ms"] or 0) / 1000
        return f"{', '.join(seen) or 'nothing known'} in a video of {seconds:.0f} s"
    counts = Counter(one["label"] for one in result["objects"])
    seen = [
        f"{_times(counts[one['label']])}{one['label']} {100 * one['score']:.0f} %"
        for one in result["seen"][:_MOST]
    ]
    return f"{', '.join(seen) or 'nothing known'} in a photo of {result['width']} x {result['height']}"


def answer(result: Event, question: str) -> str:
    """Question and answer, with the passages that it rests on."""
    if not result["known"]:
        return f"{question} - not known"
    cited = ", ".join(one["passage"] for one in result["citations"])
    return f"{question} - {' '.join(result['answer'].split())} [{cited}]"


def insight(result: Event, _: str) -> str:
    """Kind, and what it is in words."""
    return f"{result['kind'].replace('_', ' ')}: {result['what']}"


def finest(result: Event) -> tuple[str, float]:
    """Kind of a detection, and how sure it is of the surest object in each frame, all together."""
    frames = [result["objects"], *(frame["objects"] for frame in result["timeline"])]
    return result["kind"], sum(max((one["score"] for one in frame), default=0.0) for frame in frames)


def readable(text: str) -> str | None:
    """`text` as it can be shown; None for one that is largely unreadable (a raw text in an unknown encoding)."""
    shown = "".join(
        char if char.isprintable() and char != "\N{REPLACEMENT CHARACTER}" else " " for char in text
    )
    lost = sum(char == " " for char in shown) - sum(char.isspace() for char in text)
    if lost > 0.2 * len(text):
        return None
    return " ".join(shown.split()) or "(no subject)"


def _times(count: int) -> str:
    return "" if count == 1 else f"{count} x "


def _products(found: Sequence[Event]) -> str:
    return ", ".join(f"{one['name'].partition(',')[0]} {100 * one['score']:.0f} %" for one in found[:2])
