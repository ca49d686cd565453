"""Proof: members come and go; kept work survives, revoked work is neither lost nor doubled, slow models cost nothing.

What ran where is seen from outside: the task writes the id of every event into a file when its batch begins to run.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.broker.oracle import Mailer, Watcher, check, make_topics, members, read_all
from tests.broker.workers import WorkerProcess, Workers
from tests.waiting import wait_until

TASKS = "tests.broker.tasks_for_tests"


@dataclass(slots=True)
class Stand:
    """A group on topics of its own, and what can be seen of it."""

    servers: str
    group: str
    results: str
    dead: str
    mailer: Mailer
    watcher: Watcher
    workers: Workers
    run_log: Path

    def start(
        self, task: str = "CheapTask", *, options: dict[str, Any] | None = None, **more: Any
    ) -> WorkerProcess:
        together = {"run_log": str(self.run_log)} | (options or {})
        return self.workers.start(f"{TASKS}:{task}", options=together, **more)

    def runs(self) -> list[tuple[int, str]]:
        """(process id, event id) of everything that began to run."""
        if not self.run_log.exists():
            return []
        lines = self.run_log.read_text().splitlines()
        return [(int(pid), name) for pid, name in (line.split(" ", 1) for line in lines) if name != "example"]

    def times_run(self) -> Counter[str]:
        return Counter(name for _, name in self.runs())

    def ids_on(self, partitions: frozenset[tuple[str, int]]) -> set[str]:
        """Ids of the good mails on `partitions`."""
        mails = self.mailer.expected.items()
        return {
            mail.id
            for (topic, partition, _), mail in mails
            if (topic, partition) in partitions and not mail.dead
        }

    def wait_for_members(self, count: int) -> dict[str, frozenset[tuple[str, int]]]:
        """Waits until the group has `count` members with partitions; returns them."""

        def found() -> dict[str, frozenset[tuple[str, int]]]:
            now = members(self.servers, self.group)
            return now if len(now) == count and all(now.values()) else {}

        return wait_until(
            found, 60, lambda: f"{count} members; there are {members(self.servers, self.group)}"
        )

    def wait_for_all(self, timeout_s: float = 60.0) -> None:
        """Waits until as much is visible as there are mails."""
        self.wait_for_visible(len(self.mailer.expected), timeout_s)

    def wait_for_visible(self, count: int, timeout_s: float = 60.0) -> None:
        logs = (f"\n{worker}:\n{worker.log}" for worker in self.workers.all)
        wait_until(
            lambda: self.watcher.total >= count,
            timeout_s,
            lambda: f"{count} visible records; there are {self.watcher.counts}" + "".join(logs),
        )

    def check(self) -> None:
        check(self.mailer.expected, read_all(self.servers, self.results), read_all(self.servers, self.dead))


@pytest.fixture
def stand_on(
    bootstrap_servers: str, unique_name: Callable[[str], str], tmp_path: Path
) -> Iterator[Callable[[int, float], Stand]]:
    """Makes a stand: how many partitions, and the share of broken mails."""
    with ExitStack() as stack:

        def make(partitions: int, broken: float) -> Stand:
            mails, results, dead, group = (
                unique_name(word) for word in ("mails", "results", "dead", "group")
            )
            make_topics(bootstrap_servers, **{mails: partitions, results: partitions, dead: 1})
            workers = Workers(
                tmp_path,
                bootstrap_servers=bootstrap_servers,
                group_id=group,
                input_topics=mails,
                output_topic=results,
                dead_letter_topic=dead,
                session_timeout_ms=6_000,
            )
            watcher = Watcher(bootstrap_servers, [results, dead])
            stack.enter_context(watcher)
            stack.enter_context(workers)
            mailer = Mailer(bootstrap_servers, mails, seed=partitions, broken=broken)
            return Stand(bootstrap_servers, group, results, dead, mailer, watcher, workers, tmp_path / "runs")

        yield make


@pytest.mark.parametrize("comes_back", [False, True])
def test_kept_partitions_keep_their_work(
    stand_on: Callable[[int, float], Stand], tmp_path: Path, comes_back: bool
) -> None:
    """A batch with mails of kept and of revoked partitions is on the device throughout."""
    stand = stand_on(4, 0)
    stand.mailer.send(400)
    gate = tmp_path / "gate"
    old = stand.start("GatedTask", options={"gate": gate})
    (all_partitions,) = stand.wait_for_members(1).values()
    wait_until(stand.runs, 30, lambda: old.log)  # a batch is on the device, and stays there

    new = stand.start()
    now = stand.wait_for_members(2)
    new.wait_for("assigned " + stand.mailer.topic)
    assigned = {name for name in all_partitions if f"{name[0]}[{name[1]}]" in new.log}
    moved = frozenset(assigned)
    kept = all_partitions - moved
    assert {kept, moved} == set(now.values())
    stand.wait_for_visible(len(stand.ids_on(moved)))
    if comes_back:  # what was begun in the old days must not count now
        new.terminate()
        assert new.ended() == 0, new.log
        wait_until(
            lambda: f"{len(all_partitions)} partitions are ours" in old.log.split("revoked")[-1], 30, old.log
        )
        stand.mailer.send(100)
    gate.touch()
    stand.wait_for_all()

    assert set(stand.workers.stop().values()) == {0}
    stand.check()
    times = stand.times_run()
    assert {times[name] for name in stand.ids_on(kept)} == {1}
    ran_before = {name for pid, name in stand.runs() if pid == old.pid}
    assert ran_before & stand.ids_on(moved), "nothing of the revoked partitions was in flight"


def test_finished_work_is_committed_before_its_partition_goes(
    stand_on: Callable[[int, float], Stand],
) -> None:
    stand = stand_on(4, 0.1)
    old = stand.start(commit_interval_ms=9_000)
    stand.mailer.send(10)
    stand.wait_for_all()
    stand.mailer.send(200)
    good = {mail.id for mail in stand.mailer.expected.values() if mail.dead in ("", "run")}
    wait_until(lambda: good <= set(stand.times_run()), 30, lambda: old.log)

    stand.start()
    stand.wait_for_members(2)
    stand.wait_for_all()
    assert set(stand.workers.stop().values()) == {0}
    stand.check()
    ran = {(pid, name) for pid, name in stand.runs()}
    assert {pid for pid, _ in ran} == {old.pid}, "what was finished was done again by the new owner"


def test_members_come_and_go_under_load(stand_on: Callable[[int, float], Stand]) -> None:
    stand = stand_on(12, 0.02)
    active = [stand.start(options={"max_delay_ms": 100}, instance_name=name) for name in ("one", "")]
    for turn in range(4):
        stand.mailer.send(1_500)
        active.append(stand.start(options={"max_delay_ms": 100}))
        stand.wait_for_visible(1_500 * turn + 500)
        leaving = active.pop(0)
        leaving.terminate()
        assert leaving.ended() == 0, leaving.log
        stand.wait_for_visible(1_500 * turn + 1_000)
    stand.wait_for_all()
    assert set(stand.workers.stop().values()) == {0}
    stand.check()
    for worker in stand.workers.all:
        assert "lost" not in worker.log, worker.log


def test_a_long_step_does_not_cost_the_membership(stand_on: Callable[[int, float], Stand]) -> None:
    stand = stand_on(2, 0)
    stand.mailer.send(100)
    worker = stand.start(
        "GatedTask",
        options={"run_s": 7},
        session_timeout_ms=4_000,
        max_poll_interval_ms=4_000,
        revoke_deadline_ms=3_000,
        max_in_flight_records=50,
        max_chunk_records=50,
        drain_deadline_ms=30_000,
    )
    before = stand.wait_for_members(1)
    stand.wait_for_visible(50)  # reading stood still meanwhile, for there was no room
    wait_until(lambda: len(stand.times_run()) > 50, 30, lambda: worker.log)
    assert members(stand.servers, stand.group) == before
    worker.terminate()  # amid a step that is longer than the poll interval
    assert worker.ended() == 0, worker.log

    stand.check()
    assert set(stand.times_run().values()) == {1}
    assert "lost" not in worker.log and worker.log.count("assigned") == 1, worker.log


def test_a_worker_that_was_given_up_comes_back(
    stand_on: Callable[[int, float], Stand], tmp_path: Path
) -> None:
    stand = stand_on(4, 0.05)
    stand.mailer.send(400)
    gate = tmp_path / "gate"
    old = stand.start("GatedTask", options={"gate": gate}, max_chunk_records=100)
    wait_until(stand.runs, 30, lambda: old.log)
    (before,) = stand.wait_for_members(1)
    old.pause()
    wait_until(
        lambda: before not in members(stand.servers, stand.group), 30, "a silent member stays", every_s=0.2
    )
    stand.start()
    stand.wait_for_all()

    old.resume()
    old.wait_for("lost")
    gate.touch()
    stand.wait_for_members(2)
    stand.mailer.send(400)
    stand.wait_for_all()
    assert set(stand.workers.stop().values()) == {0}, old.log
    stand.check()


def test_a_restart_under_the_same_name_disturbs_nobody(stand_on: Callable[[int, float], Stand]) -> None:
    stand = stand_on(4, 0.02)
    first = stand.start(options={"max_delay_ms": 100}, instance_name="first")
    other = stand.start(options={"max_delay_ms": 100}, instance_name="other")
    before = stand.wait_for_members(2)
    rebalances = other.log.count("assigned")
    stand.mailer.send(2_000)
    stand.wait_for_visible(200)
    first.kill()
    killed = time.monotonic()
    again = stand.start(options={"max_delay_ms": 100}, instance_name="first")
    again.wait_for("assigned " + stand.mailer.topic)
    assert time.monotonic() - killed < 6, "it waited for the session time-out"
    stand.wait_for_all()

    assert set(stand.wait_for_members(2).values()) == set(before.values())
    assert other.log.count("assigned") == rebalances, other.log
    assert set(stand.workers.stop().values()) == {0}
    stand.check()


def test_a_partition_that_left_while_reading_stood_still_is_read_again(
    stand_on: Callable[[int, float], Stand], tmp_path: Path
) -> None:
    """A pause that outlives the assignment would leave the partition unread for ever."""
    stand = stand_on(4, 0)
    stand.mailer.send(400)
    gate = tmp_path / "gate"
    full = {"max_chunk_records": 20, "max_in_flight_records": 20}
    old = stand.start("GatedTask", options={"gate": gate}, **full)
    (all_partitions,) = stand.wait_for_members(1).values()
    wait_until(stand.runs, 30, lambda: old.log)
    new = stand.start()
    now = stand.wait_for_members(2)
    new.wait_for("assigned " + stand.mailer.topic)
    moved = next(held for held in now.values() if all(f"[{p}]" in new.log for _, p in held))
    stand.wait_for_visible(len(stand.ids_on(moved)))

    gate.touch()  # there is room again
    stand.wait_for_all()
    new.terminate()
    assert new.ended() == 0, new.log
    wait_until(
        lambda: f"{len(all_partitions)} partitions are ours" in old.log.split("revoked")[-1], 30, old.log
    )
    stand.mailer.send(100)
    stand.wait_for_all()
    assert set(stand.workers.stop().values()) == {0}
    stand.check()
