"""Transactions go wrong in every way they can; seen from outside each id is there exactly once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from confluent_kafka import Producer

from consumer.local.broker import EmbeddedBroker
from tests.broker.rig import (
    FAULTY,
    SCORING,
    Rig,
    Tail,
    WorkerProcess,
    assert_each_once,
    click,
    header,
    origin,
    score,
)
from tests.waiting import wait_until


@pytest.fixture
def rig(bootstrap_servers: str, unique_name: Callable[[str], str], tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(bootstrap_servers, unique_name("tx"), tmp_path)
    yield rig
    rig.close()


@pytest.fixture(scope="module")
def shaky_broker() -> Iterator[EmbeddedBroker]:
    """A broker of these tests alone, which is paused and killed; it runs between them."""
    with EmbeddedBroker() as own:
        yield own


@pytest.fixture
def private_rig(
    shaky_broker: EmbeddedBroker, unique_name: Callable[[str], str], tmp_path: Path
) -> Iterator[Rig]:
    rig = Rig(shaky_broker.bootstrap_servers, unique_name("tx"), tmp_path, partitions=2)
    yield rig
    rig.close()


def results(tail: Tail, rig: Rig) -> list[str]:
    return [score(m.value())["event_id"] for m in tail.of(rig.out)]


class Stream:
    """Sends clicks all the time until it is left; `sent` are their ids."""

    def __init__(self, rig: Rig, every_s: float = 0.005) -> None:
        self.sent: list[str] = []
        self._rig = rig
        self._every_s = every_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._main)

    def __enter__(self) -> Stream:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _main(self) -> None:
        producer = Producer(
            {"bootstrap.servers": self._rig.servers, "linger.ms": 1, "enable.idempotence": True}
        )
        while not self._ended.wait(self._every_s):
            name = f"id-{len(self.sent)}"
            producer.produce(self._rig.source, click(name), key=name)
            producer.poll(0)
            self.sent.append(name)
        assert producer.flush(60) == 0


def settle(rig: Rig, tail: Tail, expected: list[str], *alive: WorkerProcess, timeout_s: float = 60) -> None:
    """Wait until all are there, end the workers in good order, and look for what should not be there."""
    tail.until(
        lambda found: len({*results(tail, rig)}) >= len(expected), timeout_s, alive[0] if alive else None
    )
    for worker in alive:
        assert worker.stop() == 0, worker.said()[-3000:]
    tail.read(1.0)
    assert_each_once(results(tail, rig), expected)
    assert rig.committed() == len(expected)


# The broker stands still.


@pytest.mark.parametrize(("pause_s", "times"), [(0.7, 2), (3.5, 2)], ids=["briefly", "past the time-out"])
def test_proof_4_broker_paused_during_commit(
    shaky_broker: EmbeddedBroker, private_rig: Rig, pause_s: float, times: int
) -> None:
    rig = private_rig
    rig.create()
    tail = rig.tail()
    worker = rig.worker(
        SCORING,
        "--transaction-timeout-ms",
        "1500",
        "--session-timeout-ms",
        "6000",
        "-X",
        "socket.timeout.ms=1000",
    )
    with Stream(rig) as stream:
        for _ in range(times):
            tail.count(len(tail.messages) + 100, 60, worker)
            shaky_broker.pause()  # with a commit every 10 ms and more, one is under way
            time.sleep(pause_s)  # the length of the pause is what is tested
            shaky_broker.resume()
        tail.count(len(tail.messages) + 100, 60, worker)
    settle(rig, tail, stream.sent, worker)


def test_proof_4_broker_killed_during_commit(shaky_broker: EmbeddedBroker, private_rig: Rig) -> None:
    rig = private_rig
    rig.create()
    tail = rig.tail()
    worker = rig.worker(SCORING, "--transaction-timeout-ms", "3000", "--session-timeout-ms", "6000")
    with Stream(rig) as stream:
        for _ in range(2):
            tail.count(len(tail.messages) + 100, 60, worker)
            shaky_broker.kill()
            shaky_broker.start()
        tail.count(len(tail.messages) + 100, 60, worker)
    settle(rig, tail, stream.sent, worker)


# Somebody else with our name.


def test_proof_4_an_outsider_takes_the_transactional_id_over(rig: Rig) -> None:
    """The worker takes its id back at the first time, and says what is wrong when it happens again."""
    rig.create()
    tail = rig.tail()
    worker = rig.worker(SCORING, "--instance-name", "one")
    with Stream(rig) as stream:
        tail.count(100, alive=worker)
        outsider = Producer({"bootstrap.servers": rig.servers, "transactional.id": f"{rig.group}:one"})
        outsider.init_transactions(20)
        worker.wait_said("chunks had been committed")  # it has a new producer
        tail.count(len(tail.read(1.0)) + 100, alive=worker)
        outsider = Producer({"bootstrap.servers": rig.servers, "transactional.id": f"{rig.group}:one"})
        outsider.init_transactions(20)
        assert worker.ended(20) == 1
    assert "another worker uses the transactional id" in worker.said()
    assert "instance_name" in worker.said()
    heir = rig.worker(SCORING, "--instance-name", "one")
    settle(rig, tail, stream.sent, heir)


def test_proof_4_a_second_worker_with_the_same_name(rig: Rig) -> None:
    """The older one is told why it must go; the younger one does the work."""
    rig.create()
    tail = rig.tail()
    first = rig.worker(SCORING, "--instance-name", "one")
    with Stream(rig) as stream:
        tail.count(100, alive=first)
        second = rig.worker(SCORING, "--instance-name", "one")
        wait_until(lambda: first.process.poll() is not None, 20, first.said)
        tail.count(len(tail.messages) + 100, alive=second)
    assert first.ended(1) == 1
    assert "instance_name" in first.said()
    settle(rig, tail, stream.sent, second)


# The group has moved on.


def test_proof_4_group_metadata_stale_at_commit(rig: Rig) -> None:
    """The group moves on while the loop is busy and the sink commits: refused, then sent again as the new generation.

    The first batch takes a second, in which the rest is read; all of it is then finished in one go, on the loop thread,
    at 30 ms each, while the client answers the group on a thread of its own.
    """
    rig.partitions = 4
    rig.create()
    sent = [f"id-{n}" for n in range(250)]
    rig.send(click(name, "slow:finish") for name in sent)
    tail = rig.tail()
    quick = ["--session-timeout-ms", "6000"]
    stays = rig.worker(FAULTY, "--option", "run_ms=1000", "--max-chunk-records", "10", *quick)
    tail.count(11, alive=stays)
    guest = rig.worker(FAULTY, *quick)
    stays.wait_said("transaction aborted")
    stays.wait_said("revoked")
    tail.until(lambda found: len(found) >= len(sent), 60, stays)
    assert guest.stop() == 0
    settle(rig, tail, sent, stays)
    assert "Specified group generation id is not valid" in stays.said()


# A topic does not take what it gets.


def test_proof_4_result_too_large_for_its_topic(rig: Rig) -> None:
    """The broker refuses whole batches; the dead letters are exactly those that are too large."""
    rig.config = {"out": {"max.message.bytes": "20000"}}
    rig.create()
    large = {100: 30_000, 101: 25_000, 300: 900_000, 399: 2_000_000}
    rig.send([click(f"id-{n}", f"large:{large[n]}" if n in large else "large:1000") for n in range(400)])
    tail = rig.tail()
    worker = rig.worker(SCORING)
    tail.count(400, alive=worker)
    assert worker.stop() == 0
    tail.read(0.5)
    assert_each_once(results(tail, rig), [f"id-{n}" for n in range(400) if n not in large])
    letters = {origin(m)[1]: m for m in tail.of(rig.dead)}
    assert letters.keys() == large.keys()
    assert len(tail.of(rig.dead)) == len(large)
    for letter in letters.values():
        assert header(letter, "reason") == "result_too_large"
        assert header(letter, "stage") == "publish"
        assert "max.message.bytes" in header(letter, "error")


def test_proof_4_result_too_large_for_the_client(rig: Rig) -> None:
    rig.create()
    rig.send([click(f"id-{n}", "large:40000000" if n == 50 else "shoe") for n in range(100)])
    tail = rig.tail()
    worker = rig.worker(SCORING)
    tail.count(100, alive=worker)
    assert worker.stop() == 0
    tail.read(0.5)
    assert_each_once(results(tail, rig), [f"id-{n}" for n in range(100) if n != 50])
    (letter,) = tail.of(rig.dead)
    assert header(letter, "reason") == "result_too_large"


def test_proof_4_results_that_only_together_are_too_large(rig: Rig) -> None:
    """Small results in a topic that takes less than a client's usual batch: none of them is at fault."""
    rig.config = {"out": {"max.message.bytes": "4000"}}
    rig.create()
    rig.send([click(f"id-{n}", "large:300") for n in range(3000)])
    tail = rig.tail()
    worker = rig.worker(SCORING)
    tail.count(3000, alive=worker)
    assert tail.of(rig.dead) == []
    settle(rig, tail, [f"id-{n}" for n in range(3000)], worker)


def test_proof_4_result_without_key_for_a_compacted_topic(rig: Rig) -> None:
    rig.config = {"out": {"cleanup.policy": "compact"}}
    rig.create()
    rig.send([click(f"id-{n}") for n in range(10)])
    rig.send([click("keyless")], key=None)
    rig.send([click(f"id-{n}") for n in range(10, 20)])
    tail = rig.tail()
    worker = rig.worker(SCORING)
    tail.count(21, alive=worker)
    assert worker.stop() == 0
    assert_each_once(results(tail, rig), [f"id-{n}" for n in range(20)])
    (letter,) = tail.of(rig.dead)
    assert header(letter, "reason") == "result_refused"
    assert origin(letter) == (0, 10)


@pytest.mark.parametrize("missing", ["out", "dead"])
def test_proof_4_missing_topic(rig: Rig, missing: str) -> None:
    rig.create(*{"in", "out", "dead"} - {missing})
    rig.send([click("a"), b"garbage"])
    worker = rig.worker(SCORING, "-X", "topic.metadata.propagation.max.ms=2000")
    assert worker.ended(30) == 1
    assert f"{rig.name}-{missing}" in worker.said()
    assert "does not exist" in worker.said()
    assert "consumer topics create" in worker.said()
    assert rig.committed() == 0
