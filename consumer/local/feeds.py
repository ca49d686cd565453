"""What the demo sends to each task and how it says a result: tables, one entry a topic and one a task.

A new task joins the demo with an entry in PARTS; a new kind of event with one in FEEDS, too.
"""

from __future__ import annotations

import itertools
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from consumer.errors import Fatal
from consumer.exits import Exit
from consumer.local import mails, says, shop, supplies
from consumer.local import questions as help_pages
from consumer.local import uploads as files
from consumer.local.ledger import Due
from consumer.local.supplies import Supply
from consumer.records import Event
from consumer.text import held_out

__all__ = ["FEEDS", "PARTS", "Feed", "Offer", "Part", "chosen"]

_CUSTOMERS = 6
_SEASON_MS = 1_509_321_600_000
"""2017-10-30: five campaigns run, one of them, which begins that day, on 35,000 products."""
_YEAR_MS = 366 * 86_400_000
_HISTORY = 12
"""Purchases of each customer before the season, so that something is known of them when it begins."""
_MOST_BYTES = 900_000
"""Largest upload: a topic takes 1 MB unless it is told otherwise."""


@dataclass(frozen=True, slots=True)
class Offer:
    """An event, in a few words, and what is true of it where that is known."""

    event: Event
    what: str = ""
    truth: bool | None = None


@dataclass(frozen=True, slots=True)
class Feed:
    """The events of one topic."""

    schema: str
    key: str
    """Field that the records are keyed by."""
    offers: Callable[[], Iterator[Offer]]
    """Without end, and each time the same."""
    share: float
    """So many for each e-mail."""
    per_s: float
    """Pace at most, for two cores that all tasks share."""
    under_way: int
    """On their way at once, at most."""
    broken_every: int
    spoiled: Callable[[Event], Iterable[Event]] = lambda event: ()
    """Events that fit the schema and are none all the same, made of a good one."""


@dataclass(frozen=True, slots=True)
class Part:
    """One task in the demo: it reads one of FEEDS, or the results of other tasks."""

    say: Callable[[Event, str], str | None]
    """A result and its event in a few words -> a line; None for one that cannot be shown."""
    feed: str | None = None
    reads: tuple[str, ...] = ()
    """Tasks whose results it reads; it may or may not say something on each of them."""
    due: Callable[[Event], Due] = lambda event: Due.RESULT
    telling: Callable[[Event], bool] = lambda result: True
    """Whether there is more to a result than to most."""
    true: Callable[[Event], bool] | None = None
    """What a result claims, to be held against the truth of its event."""
    quality: str = ""
    """What the accuracy is about."""
    false_alarms: str = ""
    """What it is called when a result claims what is not."""
    tables: Mapping[str, Callable[[], Iterable[Event]]] = field(default_factory=dict)
    """Table -> its rows, keyed by `id`."""
    options: Mapping[str, str] = field(default_factory=dict)
    """The task's own, for its worker."""
    supplies: tuple[Supply, ...] = ()
    depicts: bool = False
    """Whether `consumer show` makes pictures of its results."""


def chosen(names: Iterable[str]) -> dict[str, Part]:
    """Those parts, in the order of PARTS; all where none are named.  Raises Fatal for what cannot be shown."""
    wanted = {name.strip() for name in names} - {""}
    if unknown := sorted(wanted - PARTS.keys()):
        raise Fatal(
            f"the demo has no task {', '.join(unknown)}; it has {', '.join(PARTS)}", exit_code=Exit.USAGE
        )
    found = {name: part for name, part in PARTS.items() if not wanted or name in wanted}
    for name, part in found.items():
        if part.reads and not found.keys() & set(part.reads):
            raise Fatal(
                f"task {name} reads the results of {', '.join(part.reads)}: name one of these, too",
                exit_code=Exit.USAGE,
            )
    return found


def _emails() -> Iterator[Offer]:
    """The part of the corpus that the model was not trained on, again and again under new ids."""
    unseen = []
    for event, label in mails.spam_assassin():
        if label is not None and held_out(event["subject"], event["body"]):
            unseen.append(Offer(event, str(event["subject"]), label))
            yield unseen[-1]
    for number in itertools.count(1):
        for offer in unseen:
            yield replace(offer, event={**offer.event, "id": f"{offer.event['id']}-{number}"})


def _clicks() -> Iterator[Offer]:
    """Some households' purchases before the season, then everything they look at, put into the cart and buy."""
    year = list(shop.clicks(shop.households(_CUSTOMERS)))
    begin = next(number for number, event in enumerate(year) if event["time"] >= _SEASON_MS)
    past: dict[str, deque[Event]] = defaultdict(lambda: deque(maxlen=_HISTORY))
    for event in year[:begin]:
        if event["kind"] == "purchase":
            past[event["user"]].append(event)
    before = sorted(itertools.chain(*past.values()), key=lambda event: event["time"])
    for event in itertools.chain(before, year[begin:]):
        yield Offer(event, str(event["category"]))
    for number in itertools.count(1):  # next year they do the same
        for event in year:
            later = {"id": f"{event['id']}-{number}", "time": event["time"] + number * _YEAR_MS}
            yield Offer({**event, **later}, str(event["category"]))


def _uploads() -> Iterator[Offer]:
    return (
        Offer(event, event["media_type"]) for event in files.uploads() if len(event["data"]) <= _MOST_BYTES
    )


def _spoiled_upload(event: Event) -> Iterator[Event]:
    """The file without its end, under a wrong name, with nothing in it."""
    yield {**event, "data": event["data"][: len(event["data"]) // 2]}
    yield {**event, "media_type": "image/gif"}
    yield {**event, "data": b""}


def _questions() -> Iterator[Offer]:
    return (Offer(event, event["text"], answerable) for event, answerable in help_pages.questions())


FEEDS: dict[str, Feed] = {
    "emails": Feed("email", "id", _emails, share=1.0, per_s=50.0, under_way=64, broken_every=100),
    "clicks": Feed("click", "user", _clicks, share=0.25, per_s=12.5, under_way=64, broken_every=100),
    "uploads": Feed(
        "upload",
        "user",
        _uploads,
        share=0.011,
        per_s=0.6,
        under_way=8,
        broken_every=10,
        spoiled=_spoiled_upload,
    ),
    "questions": Feed(
        "question",
        "user",
        _questions,
        share=0.01,
        per_s=0.5,
        under_way=8,
        broken_every=10,
        spoiled=lambda event: [{**event, "text": "?!"}],
    ),
}
"""Topic -> what is sent there."""

PARTS: dict[str, Part] = {
    "spam": Part(
        says.spam,
        "emails",
        true=lambda result: result["label"] == "spam",
        quality="on e-mails that the model was not trained on",
        false_alarms="good mail called spam",
        supplies=(supplies.EMAILS,),
    ),
    "discount": Part(
        says.discount,
        "clicks",
        due=lambda event: Due.RESULT if event["kind"] == "cart" else Due.NOTHING,
        telling=lambda result: result["decision"] == "offer",
        tables={"campaigns": shop.campaigns},
    ),
    "recommend": Part(
        says.recommend, "clicks", tables={"products": lambda: shop.products(until_s=_SEASON_MS // 1000)}
    ),
    "image": Part(
        says.image,
        "uploads",
        telling=lambda result: bool(result["seen"]),
        supplies=(supplies.DETECTOR,),
        depicts=True,
    ),
    "answer": Part(
        says.answer,
        "questions",
        true=lambda result: bool(result["known"]),
        telling=lambda result: bool(result["known"]),
        quality="in telling what the passages answer from what they do not",
        false_alarms="answered although no passage does",
        tables={"knowledge": help_pages.passages},
        supplies=(supplies.LANGUAGE_MODEL,),
    ),
    "insight": Part(
        says.insight,
        reads=("spam", "discount", "recommend", "image", "answer"),
        # A minute of demo has many windows; by the time of the results, for the e-mails are of 2002.
        options={
            "clock": "result",
            "window_s": "5",
            "volume_windows": "3",
            "campaign_mails": "3",
            "shift_scores": "200",
            "shift_reference": "1000",
        },
    ),
}
"""Task -> its part."""
