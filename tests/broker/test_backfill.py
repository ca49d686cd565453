"""`consumer replay`: a task again over past events, exactly once, and the live group notices nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.broker.rig import SCORING, Rig, Tail, WorkerProcess, assert_each_once, click, score

BEGIN_MS = 1_700_000_000_000
HOUR_MS = 3_600_000
EVENTS = 600


@pytest.fixture
def rig(bootstrap_servers: str, unique_name: Callable[[str], str], tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(bootstrap_servers, unique_name("past"), tmp_path, partitions=2)
    rig.create()
    yield rig
    rig.close()


def moment(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat()


def replay(rig: Rig, name: str, *flags: str) -> WorkerProcess:
    started = WorkerProcess.start(
        rig.folder / f"{name}.log",
        [
            *(
                "replay",
                SCORING,
                "--from",
                moment(BEGIN_MS + HOUR_MS),
                "--to",
                moment(BEGIN_MS + 2 * HOUR_MS),
            ),
            *(
                "--bootstrap-servers",
                rig.servers,
                "--input-topics",
                rig.source,
                "--group-id",
                f"{rig.group}-again",
            ),
            *("--output-topic", f"{rig.out}-again", "--dead-letter-topic", f"{rig.dead}-again"),
            *("--session-timeout-ms", "6000", *flags),
        ],
        {},
    )
    rig.workers.append(started)
    return started


def test_a_past_hour_runs_again_and_the_live_group_notices_nothing(rig: Rig) -> None:
    for hour, name in enumerate(("before", "within", "after")):
        values = [b"broken" if n == 5 else click(f"{name}-{n}") for n in range(EVENTS)]
        rig.send(values, timestamp=BEGIN_MS + hour * HOUR_MS)
    live = rig.tail()
    worker = rig.worker(SCORING)
    live.count(3 * EVENTS, alive=worker)
    assert worker.stop() == 0
    committed = rig.committed()

    first = replay(
        rig, "killed", "--option", "run_ms=200", "--max-batch-items", "50", "--max-chunk-records", "50"
    )
    first.wait_joined(60)
    again = Tail(rig.servers, [f"{rig.out}-again", f"{rig.dead}-again"], 1)
    try:
        again.count(1, 60, first)
        first.kill()
        assert len(again.read(0.5)) < EVENTS, "it was over before it was killed: this proves nothing"
        second = replay(rig, "second")
        assert second.ended(90) == 0, second.said()
        again.count(EVENTS)
        again.read(1.0)
        assert_each_once(
            (score(m.value())["event_id"] for m in again.of(f"{rig.out}-again")),
            (f"within-{n}" for n in range(EVENTS) if n != 5),
        )
        assert [m.key() for m in again.of(f"{rig.dead}-again")] == [b"k5"]
        third = replay(rig, "third")
        assert third.ended(60) == 0
        third.wait_said("already")
        assert len(again.read(0.5)) == EVENTS
    finally:
        again.close()
    assert rig.committed() == committed
    assert len(live.read(0.5)) == 3 * EVENTS


def test_a_replay_into_the_live_topics_is_refused(rig: Rig) -> None:
    refused = WorkerProcess.start(
        rig.folder / "refused.log",
        [
            *("replay", SCORING, "--from", "2h", "--bootstrap-servers", rig.servers),
            *("--output-topic", "click_scores"),
        ],
        {},
    )
    rig.workers.append(refused)
    assert refused.ended(60) == 2
    assert "is that of the live task" in refused.said()
