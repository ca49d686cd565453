"""What a demo sends, record by record, and how what comes back is entered into the books."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any, cast

import pytest
from confluent_kafka import Message

from consumer.codec import Decoder, load_schema
from consumer.config import Settings
from consumer.errors import BadRecord
from consumer.local import traffic
from consumer.local.feeds import FEEDS, PARTS, Feed, Offer, Part
from consumer.local.ledger import Due
from consumer.local.stage import Running
from consumer.local.traffic import Sender, goal
from consumer.tasks import find_task


def running(name: str, part: Part | None = None, **settings: Any) -> Running:
    task = find_task(name)
    complete = Settings(bootstrap_servers="nowhere:1", task=name, **settings).for_task(task)
    return Running(name, part or PARTS[name], task, complete, complete.input_topics)


class Fake:
    """A record as the reader gets it."""

    def __init__(self, topic: str, offset: int, headers: dict[str, str] | None = None) -> None:
        self._topic, self._offset, self._headers = topic, offset, headers or {}

    def topic(self) -> str:
        return self._topic

    def partition(self) -> int:
        return 2

    def offset(self) -> int:
        return self._offset

    def headers(self) -> list[tuple[str, bytes]]:
        return [(name, value.encode()) for name, value in self._headers.items()]


def record(topic: str, offset: int, headers: dict[str, str] | None = None) -> Message:
    return cast(Message, Fake(topic, offset, headers))


def questions(count: int | None) -> list[tuple[str, Due | None, bytes | None]]:
    sender = Sender("nowhere:1", "questions", FEEDS["questions"], count, [])
    sender.load()
    return [(name, due, value) for name, _, due, value in islice(sender._ready, count or 40)]


@pytest.mark.parametrize("count", [2, 7, 20])
def test_each_feed_has_something_broken_however_few_there_are(count: int) -> None:
    sent = questions(count)
    dead = [value for _, due, value in sent if due is Due.DEAD_LETTER]
    assert len(dead) == max(1, count // 10)
    decoder = Decoder(load_schema("question"))
    good = decoder.decode_many([value for _, due, value in sent if due is None])
    assert not any(isinstance(one, BadRecord) for one in good)
    assert len({name for name, _, _ in sent}) == count


def test_broken_ones_are_events_that_are_none_and_bytes_in_turn() -> None:
    dead = [value for _, due, value in questions(None) if due is Due.DEAD_LETTER]
    first, second = Decoder(load_schema("question")).decode_many(dead[:2])
    assert isinstance(first, dict) and first["text"] == "?!"
    assert isinstance(second, BadRecord)


def test_other_events_are_a_share_of_the_mails() -> None:
    assert {name: goal(feed, 2_000) for name, feed in FEEDS.items()} == {
        "emails": 2_000,
        "clicks": 500,
        "uploads": 22,
        "questions": 20,
    }
    assert all(goal(feed, 1) == 2 for feed in FEEDS.values())


def test_two_tasks_may_read_one_feed_and_each_has_its_own_due() -> None:
    cart = {**find_task("discount").example, "kind": "view"}
    feed = Feed("click", "user", lambda: iter([Offer(cart)] * 5), 1, 1e9, 64, broken_every=100)
    tasks = [running("discount"), running("recommend")]
    sender = Sender("nowhere:1", "clicks", feed, None, tasks)
    sender._enter("c1", Offer(cart), None)
    assert [one.ledger.sent["c1"].due for one in tasks] == [Due.NOTHING, Due.RESULT]
    sender._enter("c2", Offer(cart), Due.DEAD_LETTER)
    assert [one.ledger.broken for one in tasks] == [1, 1]


def test_a_result_and_a_dead_letter_find_their_event() -> None:
    one = running("answer")
    sender = Sender("nowhere:1", "questions", FEEDS["questions"], None, [one])
    for name, due in (("q1", None), ("q2", Due.DEAD_LETTER)):
        sender._enter(name, Offer({"id": name}, "How?", truth=True), due)
    result = {"event_id": "q1", "source_topic": "questions", "source_partition": 0, "source_offset": 0}
    traffic._enter_result(one, {**result, "known": False})
    traffic._enter_dead(one, record("x", 0, {"demo.event_id": "q2", "dead_letter.reason": "truncated"}))
    assert one.ledger.clean and one.ledger.open == 0
    assert [(line.text, line.right, line.telling) for line in one.ledger.latest] == [
        ("How? - not known", False, False)
    ]


@pytest.mark.parametrize("event_first", [True, False])
def test_results_are_events_of_the_tasks_that_read_them_whichever_is_seen_first(event_first: bool) -> None:
    part = Part(lambda result, what: result["what"], reads=("spam",))
    one = running("answer", part, input_topics=("spam_verdicts",))
    result = {"event_id": "m1", "source_topic": "spam_verdicts", "source_partition": 2, "source_offset": 7}
    steps: list[Callable[[], object]] = [
        lambda: traffic._enter_as_event(record("spam_verdicts", 7), [one]),
        lambda: traffic._enter_result(one, {**result, "what": "more spam than usual"}),
    ]
    for step in steps if event_first else reversed(steps):
        step()
    traffic._enter_as_event(record("spam_verdicts", 8), [one])
    assert (one.ledger.total, one.ledger.results, one.ledger.open) == (2, 1, 2)
    one.ledger.reached(("spam_verdicts", 2), 9)
    assert one.ledger.clean and one.ledger.silent == 1
    origin = {"dead_letter.topic": "spam_verdicts", "dead_letter.partition": "2", "dead_letter.offset": "8"}
    traffic._enter_dead(one, record("x", 0, {**origin, "dead_letter.reason": "late"}))
    assert one.ledger.wrongly_dead == 1


def test_the_best_picture_of_each_kind_is_remembered() -> None:
    one = running("image")
    base = {"source_topic": "u", "source_partition": 0, "source_offset": 0, "timeline": [], "kind": "image"}
    for name, score in (("dull", 0.4), ("fine", 0.9), ("fair", 0.6)):
        traffic._enter_result(one, {**base, "event_id": name, "objects": [{"score": score}]})
    assert one.finest == {"image": (0.9, "fine")}
