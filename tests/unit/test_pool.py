"""The prepare pool: slices of events become items, each rejected event in its place, and no failure is silent."""

from __future__ import annotations

import queue
import re
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from consumer import pool as pool_module
from consumer.engine import Failed
from consumer.errors import BadRecord, Fatal, Retry
from consumer.pool import Pool, Prepared
from consumer.records import Event
from consumer.task import Item, Rejected, Task

Answers = queue.SimpleQueue[Prepared | Failed]
Start = Callable[..., tuple[Pool, Answers]]


class Lengths(Task):
    """Prepares texts; a callable in place of a text is called."""

    name = "lengths"

    def prepare(self, events: Sequence[Event], recalled: Sequence[Any]) -> Sequence[Item | Rejected]:
        assert len(recalled) == len(events)
        return [self.item_of(event["text"]) for event in events]

    @staticmethod
    def item_of(text: Any) -> Any:
        made = text() if callable(text) else text
        return Item(made, len(made)) if isinstance(made, str) else made


@pytest.fixture
def start() -> Iterator[Start]:
    pools: list[Pool] = []

    def begin(task: Task, threads: int = 2, max_bytes: int = 1 << 30) -> tuple[Pool, Answers]:
        answers: Answers = queue.SimpleQueue()
        pool = Pool(task, threads, max_bytes, answers.put)
        pools.append(pool)
        return pool, answers

    yield begin
    for pool in pools:
        pool.stop()


def texts(*values: Any) -> list[Event]:
    return [{"id": str(i), "text": value} for i, value in enumerate(values)]


def hand(pool: Pool, chunk: int, start: int, events: list[Event]) -> None:
    """Submit, and give to the threads, as the loop does while there is room."""
    pool.submit(chunk, start, events)
    pool.feed(0)


def raising(error: BaseException) -> Callable[[], Any]:
    def fail() -> Any:
        raise error

    return fail


def prepared(answers: Answers) -> Prepared:
    answer = answers.get(timeout=10)
    assert isinstance(answer, Prepared), answer
    return answer


def test_items_come_back_with_their_place(start: Start) -> None:
    pool, answers = start(Lengths())
    hand(pool, 7, 100, texts("a", "bcd"))
    assert prepared(answers) == Prepared(7, 100, [Item("a", 1), Item("bcd", 3)])


def test_an_event_that_makes_prepare_raise_is_rejected_alone(start: Start) -> None:
    pool, answers = start(Lengths())
    no_text = BadRecord("no_text", "nothing to read")
    hand(pool, 1, 0, texts("a", raising(KeyError("subject")), "b", no_text, raising(no_text), "c"))
    items = prepared(answers).items
    assert [item.value if isinstance(item, Item) else item.reason for item in items] == [
        *("a", "prepare_failed", "b", "no_text", "no_text", "c")
    ]
    bad = items[1]
    assert isinstance(bad, BadRecord)
    assert bad.stage == "prepare"
    assert re.fullmatch(r"KeyError: 'subject' \(at .*test_pool\.py:\d+\)", bad.detail)
    assert isinstance(items[3], BadRecord) and items[3].stage == "prepare"


def test_what_is_neither_item_nor_rejection_never_reaches_the_loop(start: Start) -> None:
    pool, answers = start(Lengths())
    hand(pool, 1, 0, texts("a", 5, lambda: Item("x", None)))  # type: ignore[arg-type]
    items = prepared(answers).items
    assert items[0] == Item("a", 1)
    assert all(isinstance(item, BadRecord) and item.reason == "prepare_failed" for item in items[1:])


def test_fatal_reaches_the_loop_as_it_is(start: Start) -> None:
    error = Fatal("over")
    pool, answers = start(Lengths())
    hand(pool, 1, 0, texts("a", raising(error)))
    assert answers.get(timeout=10) == Failed(error)


def test_even_an_exit_on_a_pool_thread_is_heard_of(start: Start) -> None:
    pool, answers = start(Lengths())
    hand(pool, 1, 0, texts(raising(SystemExit(3))))
    answer = answers.get(timeout=10)
    assert isinstance(answer, Failed) and isinstance(answer.error, Fatal)
    assert "SystemExit: 3" in str(answer.error)
    assert isinstance(answer.error.__cause__, SystemExit)


def test_slices_are_prepared_side_by_side(start: Start) -> None:
    pool, answers = start(Lengths(), threads=2)
    meeting = threading.Barrier(2, timeout=10)

    def meet() -> str:
        meeting.wait()
        return "met"

    hand(pool, 0, 0, texts("the first tells what items cost"))
    pool.done(prepared(answers))
    hand(pool, 1, 0, texts(meet))
    hand(pool, 1, 1, texts(meet))
    both = sorted((prepared(answers) for _ in range(2)), key=lambda answer: answer.start)
    assert [answer.items for answer in both] == [[Item("met", 3)]] * 2


def test_stop_drops_what_has_not_begun(start: Start) -> None:
    others = set(threading.enumerate())
    pool, answers = start(Lengths(), threads=1)
    begun, go_on = threading.Event(), threading.Event()

    def slow() -> str:
        begun.set()
        assert go_on.wait(10)
        return "slow"

    hand(pool, 1, 0, texts(slow))
    hand(pool, 2, 0, texts("never"))
    assert begun.wait(10)
    pool.stop()
    go_on.set()
    assert prepared(answers).chunk == 1
    for thread in set(threading.enumerate()) - others:
        thread.join(10)
    assert answers.empty()


def test_an_outage_is_waited_for_and_costs_nothing(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "_PAUSE_S", 0.01)
    pool, answers = start(Lengths(), threads=1)
    away = iter([True, True, False])

    def fetched() -> str:
        if next(away):
            raise Retry("the storage is away")
        return "here"

    hand(pool, 1, 0, texts("first", fetched, BadRecord("bad", "for good")))
    items = prepared(answers).items
    assert [getattr(item, "value", None) for item in items] == ["first", "here", None]
    assert isinstance(items[2], BadRecord)
    assert next(away, None) is None


def test_an_outage_does_not_hold_up_the_end(start: Start) -> None:
    others = set(threading.enumerate())
    pool, answers = start(Lengths(), threads=1)
    begun = threading.Event()

    def away() -> str:
        begun.set()
        raise Retry("away")

    hand(pool, 1, 0, texts(away))
    assert begun.wait(10)
    pool.stop()
    failed = answers.get(timeout=10)
    assert isinstance(failed, Failed) and isinstance(failed.error, Retry)
    for thread in set(threading.enumerate()) - others:
        thread.join(10)
        assert not thread.is_alive()


class Heavy(Task):
    """Items of 100 bytes by their own account."""

    name = "heavy"

    def prepare(self, events: Sequence[Event], recalled: Sequence[Any]) -> Sequence[Item | Rejected]:
        return [Item(event["id"], nbytes=100) for event in events]


def test_no_more_is_prepared_ahead_than_there_is_room_for(start: Start) -> None:
    """The device's part is played here: it sees the oldest slice when nothing more comes."""
    pool, answers = start(Heavy(), threads=4, max_bytes=1_000)
    for number in range(20):
        pool.submit(1, 2 * number, texts("", ""))
    alive: deque[int] = deque()
    places, most = [], 0
    for _ in range(20):
        pool.feed(sum(alive))
        while not pool.busy:
            alive.popleft()
            pool.feed(sum(alive))
        done = prepared(answers)
        alive.append(pool.done(done))
        places.append(done.start)
        most = max(most, sum(alive))
    assert sorted(places) == list(range(0, 40, 2))
    assert 800 <= most <= 1_000, "neither too much nor room left empty"
    pool.feed(0)
    assert not pool.busy and answers.empty()


def test_an_item_larger_than_all_room_is_prepared_alone(start: Start) -> None:
    pool, answers = start(Heavy(), threads=2, max_bytes=1)
    for number in range(3):
        pool.submit(1, number, texts(""))
    for number in range(3):
        pool.feed(0)
        assert prepared(answers).start == number
        assert answers.empty()
        assert pool.done(Prepared(1, number, [Item("", nbytes=100)])) == 100
        pool.feed(100)
        assert not pool.busy


def test_what_went_away_is_not_prepared(start: Start) -> None:
    pool, answers = start(Heavy())
    for chunk in (1, 2):
        pool.submit(chunk, 0, texts(""))
    pool.drop({1})
    pool.feed(0)
    assert prepared(answers).chunk == 2
    pool.feed(0)
    assert answers.empty()
