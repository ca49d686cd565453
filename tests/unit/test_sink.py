"""The sink's bookkeeping: every chunk that it was given is reported back, whatever happens to the membership."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from consumer.records import Finished, Grant
from consumer.sink import Settle, Settled, Sink, WantGrant
from tests.unit.fakes import FakeRecord

PLACE = ("emails", 3)


class FakeProducer:
    """Commits everything."""

    def __init__(self) -> None:
        self.committed: list[int] = []

    def commit(self, pending: Sequence[Finished], metadata: Any) -> None:
        assert metadata is not None, "offsets without proof of membership"
        self.committed += [finished.number for finished in pending]

    def close(self) -> None:
        pass


def finished(number: int, epoch: int) -> Finished:
    record = FakeRecord(at=number)
    return Finished(number, "verdicts", [record], [b"value"], None, [], {PLACE: number + 1}, {PLACE: epoch})


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> tuple[Sink, FakeProducer, queue.SimpleQueue[Any]]:
    reports: queue.SimpleQueue[Any] = queue.SimpleQueue()
    producer = FakeProducer()
    sink = Sink(
        {},
        {},
        "group",
        topics=("verdicts",),
        commit_interval_ms=0,
        refused=lambda *_: pytest.fail("nothing is refused"),
        lighten=lambda *_: pytest.fail("nothing is refused"),
        post=reports.put,
    )
    monkeypatch.setattr(sink, "_connect", lambda: producer)
    return sink, producer, reports


@pytest.mark.parametrize(("epoch", "committed"), [(7, [1, 2]), (8, [])])
def test_chunks_that_come_while_it_waits_for_the_membership_are_reported(
    parts: tuple[Sink, FakeProducer, queue.SimpleQueue[Any]], epoch: int, committed: list[int]
) -> None:
    """Else the worker would wait for them until its deadline, and count them as in flight for ever."""
    sink, producer, reports = parts
    sink.start()
    sink.submit(Grant({PLACE: 7}, None))  # no member at the moment
    sink.submit(finished(1, 7))
    assert isinstance(reports.get(timeout=5), WantGrant)
    sink.submit(finished(2, 7))
    sink.submit(Grant({PLACE: epoch}, "member"))
    settled = reports.get(timeout=5)
    assert isinstance(settled, Settled)
    assert settled.numbers == (1, 2)
    assert producer.committed == committed
    assert sink.stop(5)


def test_without_partitions_nothing_waits_for_a_membership(
    parts: tuple[Sink, FakeProducer, queue.SimpleQueue[Any]],
) -> None:
    """A worker that has lost everything may stop at once."""
    sink, producer, reports = parts
    sink.start()
    sink.submit(finished(1, 7))
    done = threading.Event()
    sink.submit(Settle(Grant({}, None), done))
    assert done.wait(5)
    settled = next(
        report for report in iter(lambda: reports.get(timeout=5), None) if isinstance(report, Settled)
    )
    assert settled.numbers == (1,)
    assert not producer.committed
    assert sink.stop(5)
