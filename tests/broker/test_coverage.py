"""A partition that fell between two owners finds one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.broker.rig import FAULTY, Rig, assert_each_once, click, score


@pytest.fixture
def rig(bootstrap_servers: str, unique_name: Callable[[str], str], tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(bootstrap_servers, unique_name("cover"), tmp_path, partitions=2)
    yield rig
    rig.close()


def test_proof_3_a_named_worker_killed_in_the_middle_of_a_rebalance_orphans_nothing(rig: Rig) -> None:
    """`a` is to give a partition to `b`, but is killed before it does and comes back: the broker gives it the rest."""
    rig.create()
    sent = [f"id-{n}" for n in range(400)]
    rig.send(click(name, "slow:finish") for name in sent)
    tail = rig.tail()
    quick = ("--session-timeout-ms", "6000")
    first = rig.worker(FAULTY, "--instance-name", "a", *quick)
    first.wait_joined()
    second = rig.worker(FAULTY, "--instance-name", "b", *quick)
    second.wait_said("assigned nothing")
    first.kill()
    first = rig.worker(FAULTY, "--instance-name", "a", *quick)
    tail.until(lambda found: len(found) >= len(sent), 90, first)
    for worker in (first, second):
        worker.wait_said("is ready on")  # it listens to signals by then
        assert worker.stop() == 0
    tail.read(1.0)
    assert_each_once((score(m.value())["event_id"] for m in tail.of(rig.out)), sent)
    assert rig.committed() == len(sent)
    assert "no member of the group owns it" in first.said() + second.said()
