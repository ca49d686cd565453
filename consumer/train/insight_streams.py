"""Real streams of results for judging the task `insight`, and what is done to them.

mails     verdicts of the shipped spam model on SpamAssassin's held-out mails, in an order that is drawn, a Poisson
          stream of MAILS_PER_HOUR; the data has too few mails an hour to keep its own times
visits    baskets of the Complete Journey data at their own times: a shop's real day, week and year
baskets   what those households buy, category by category, in the place of objects in uploads: users of photos with
          known objects are in no package
offers    the discount model's predictions for its test campaigns, with what those households really redeemed
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np

from consumer.local.mails import spam_assassin
from consumer.local.shop import tables
from consumer.models.discount import load_discount
from consumer.records import Event
from consumer.state import Store
from consumer.task import Device, Item
from consumer.tasks.insight import InsightTask
from consumer.tasks.spam import SpamTask
from consumer.text import held_out
from consumer.train.discount import probabilities
from consumer.train.discount_data import read_pairs

__all__ = [
    "HOUR_MS", "MAILS_PER_HOUR", "Injected", "Told", "baskets", "mails", "offers", "replay", "stream_of", "variants",
    "verdicts", "visits",
]  # fmt: skip

HOUR_MS = 3_600_000
BEGIN_MS = 1_772_323_200_000
MAILS_PER_HOUR = 120
CATEGORIES = 80
HOUSEHOLDS = 150
WORDS = ("invoice", "friday", "update", "order", "account", "meeting", "please", "team", "number", "today")


@dataclass(frozen=True, slots=True)
class Injected:
    """An anomaly: what should be told, and when it is there, in ms.  `subject` None: any."""

    kind: str
    subject: str | None
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Told:
    """An insight, the time in ms of the event that it came with, and that event's place in the stream."""

    insight: Event
    time: int
    place: int


def replay(task: InsightTask, topic: str, events: Sequence[Event]) -> list[Told]:
    """All insights on one partition, through the state that a worker keeps."""
    store, told = Store(), []
    store.open((topic, 0), 1)
    for place, event in enumerate(events):
        time = event["time"]
        record: Any = SimpleNamespace(
            topic=lambda: topic, partition=lambda: 0, key=lambda: None, timestamp=lambda time=time: (1, time)
        )
        insight = store.use("finish", record, partial(task.finish, event, None))
        if place % 500 == 0:
            store.take()
        if insight is not None:
            told.append(Told(insight, time, place))
    return told


def verdicts(letters: Sequence[Event], tick: Callable[[int], None] = lambda done: None) -> list[Event]:
    """What the shipped spam model says of mails, as a reader of `spam_verdicts` gets it."""
    task, made = SpamTask(), []
    task.load(Device())
    items: list[Any] = list(task.prepare(letters, [None] * len(letters)))
    order = sorted(range(len(letters)), key=lambda place: items[place].tokens)
    outputs: dict[int, Any] = {}
    for begin in range(0, len(order), 64):
        places = order[begin : begin + 64]
        chosen: list[Item] = [items[place] for place in places]
        outputs |= zip(places, task.run([item.value for item in chosen]), strict=True)
        tick(len(places))
    for place, letter in enumerate(letters):
        row = task.finish(letter, outputs[place], SimpleNamespace())  # type: ignore[arg-type]  # keeps no state
        made.append(
            {
                **row, "event_id": letter["id"], "model": task.name, "model_version": task.version, "produced_at": 0,
                "source_topic": "emails", "source_partition": 0, "source_offset": place,
            }
        )  # fmt: skip
    return made


def mails() -> list[Event]:
    """The third of SpamAssassin's mails that no weights were trained on."""
    return [event for event, _ in spam_assassin() if held_out(event["subject"], event["body"])]


def variants(letter: Event, count: int, dice: np.random.Generator) -> list[Event]:
    """The same mail as a mailer would vary it: another name, number and link, and three other words."""
    words, made = letter["body"].split(" "), []
    for number in range(count):
        body = list(words)
        for place in dice.integers(0, min(len(body), 80), 3).tolist():
            body[place] = WORDS[dice.integers(len(WORDS))]
        name = f"{WORDS[dice.integers(len(WORDS))]}{dice.integers(1_000)}"
        text = f"Dear {name},\n{' '.join(body)}\nhttp://{name}.example.net/{dice.integers(10**6)}"
        made.append({**letter, "id": f"{letter['id']}-{number}", "body": text, "from": f"{name}@example.net"})
    return made


def stream_of(known: Sequence[Event], days: float, dice: np.random.Generator) -> list[Event]:
    """A Poisson stream of verdicts drawn from those that are known, in order of time."""
    count = dice.poisson(days * 24 * MAILS_PER_HOUR)
    times = np.sort(dice.integers(0, round(days * 24 * HOUR_MS), count)) + BEGIN_MS
    drawn = dice.integers(0, len(known), count)
    return [
        {**known[which], "time": int(time), "event_id": f"{known[which]['event_id'][:12]}-{number}"}
        for number, (which, time) in enumerate(zip(drawn.tolist(), times.tolist(), strict=True))
    ]


def visits() -> list[Event]:
    """Every basket of 2017 as a decision without an offer: what counts is its time."""
    rows = tables("transactions")["transactions"].groupby("basket_id").transaction_timestamp.min()
    times = np.sort(rows.astype("datetime64[ms]").astype("int64").to_numpy())
    return [decision(int(time), f"b-{number}") for number, time in enumerate(times.tolist())]


def decision(time: int, name: str, settled: Sequence[Event] = ()) -> Event:
    return {
        "event_id": name, "time": time, "probability": None, "decision": "none", "settled": list(settled),
        "model": "discount", "model_version": "1", "produced_at": time,
    }  # fmt: skip


def baskets() -> list[Event]:
    """What HOUSEHOLDS households bought, as detections, in order of time."""
    loaded = tables("transactions", "products")
    rows = loaded["transactions"].merge(
        loaded["products"][["product_id", "product_category"]], on="product_id"
    )
    common = rows.product_category.value_counts().index[:CATEGORIES]
    users = rows.household_id.value_counts().index[:HOUSEHOLDS]
    rows = rows[rows.product_category.isin(common) & rows.household_id.isin(users)]
    rows = rows.sort_values(["transaction_timestamp", "basket_id", "product_id"], kind="stable")
    times = rows.transaction_timestamp.astype("datetime64[ms]").astype("int64")
    made: dict[int, Event] = {}
    for basket, user, label, time in zip(
        rows.basket_id.tolist(), rows.household_id.tolist(), rows.product_category.tolist(), times.tolist(),
        strict=True,
    ):  # fmt: skip
        event = made.setdefault(basket, detection(time, f"u-{basket}", str(user)))
        if label not in {seen["label"] for seen in event["seen"]}:
            event["seen"].append({"label": label, "score": 0.7, "most": 1})
    return sorted(made.values(), key=lambda event: (event["time"], event["event_id"]))


def detection(time: int, name: str, user: str) -> Event:
    about = {"model": "image", "model_version": "1", "produced_at": time}
    return {"event_id": name, "time": time, "user": user, "seen": [], **about}


def offers(dice: np.random.Generator, change: float = 1.0) -> Iterator[Event]:
    """The test campaigns' pairs drawn with replacement, ten settled an hour; the second half redeems `change` times
    as often."""
    global _PAIRS
    if _PAIRS is None:
        pairs = read_pairs()
        chances = probabilities(load_discount().model, pairs.features[pairs.test])
        _PAIRS = (chances, pairs.redeemed[pairs.test])
    chances, redeemed = _PAIRS
    drawn = dice.integers(0, len(chances), len(chances))
    half = len(drawn) // 2
    for begin in range(0, len(drawn) - 9, 10):
        rows = drawn[begin : begin + 10]
        hits = redeemed[rows].copy()
        if begin >= half:
            moved = dice.random(10)
            hits = hits & (moved < change) if change < 1 else hits | (moved < (change - 1) * chances[rows])
        settled = {
            "campaign": "test",
            "offers": 10,
            "expected": float(chances[rows].sum()),
            "redeemed": int(hits.sum()),
        }
        time = BEGIN_MS + begin // 10 * HOUR_MS
        yield decision(time, f"d-{begin}", [settled])


_PAIRS: tuple[Any, Any] | None = None
"""Read once: it takes half a minute."""
