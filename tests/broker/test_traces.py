"""`consumer traces`: events followed live and looked up, without any collector."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from consumer.local.topics import ensure_topics
from consumer.local.wanted import spans_topic
from tests.broker.rig import FAULTY, ROOT, Rig, WorkerProcess, click
from tests.waiting import wait_until

TRACE, PARENT = "3af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def rig(bootstrap_servers: str, unique_name: Callable[[str], str], tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(bootstrap_servers, unique_name("spans"), tmp_path)
    rig.create()
    yield rig
    rig.close()


def show(rig: Rig, topic: str, *more: str) -> subprocess.CompletedProcess[str]:
    names = ("--bootstrap-servers", rig.servers, "--trace-topic", topic)
    command = [sys.executable, "-m", "consumer", "traces", "show", *more, *names]
    wide = {**os.environ, "COLUMNS": "300"}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, env=wide)


def test_events_are_followed_live_and_one_is_looked_up(rig: Rig) -> None:
    topic = f"{rig.name}-otlp"
    ensure_topics({"bootstrap.servers": rig.servers}, [spans_topic(topic)])
    names = ("--bootstrap-servers", rig.servers, "--trace-topic", topic)
    tails = {}
    for kind, flags in {
        "all": ["--json", "--count", "2"],
        "errors": ["--errors", "--tree", "--count", "1"],
    }.items():
        tails[kind] = WorkerProcess.start(rig.folder / f"{kind}.log", ["traces", "tail", *flags, *names], {})
        rig.workers.append(tails[kind])
    tail = rig.tail()
    worker = rig.worker(FAULTY, "--trace-topic", topic, OTEL_TRACES_SAMPLER="parentbased_always_off")
    worker.wait_joined()
    sent = 0

    def followed() -> bool:
        """Sends on until both have seen theirs: nobody says from when on they listen."""
        nonlocal sent
        rig.send([click(f"traced-{sent}")], headers=[("traceparent", f"00-{TRACE}-{PARENT}-01".encode())])
        rig.send([click(f"quiet-{sent}"), click(f"bad-{sent}", "raise:run")])
        sent += 1
        tail.count(3 * sent, alive=worker)
        return all(each.process.poll() is not None for each in tails.values())

    wait_until(followed, 60, lambda: f"{[each.said() for each in tails.values()]}", every_s=0.5)
    assert worker.stop() == 0
    seen = [json.loads(each) for each in tails["all"].log.read_text().splitlines()]
    assert len(seen) == 2
    for each in seen:
        kind, _, number = each["event"].partition("-")
        assert kind in ("traced", "bad"), "of what nobody traces only dead letters (and the slowest) are told"
        assert int(number) < sent
        assert each["outcome"] == {"traced": "result", "bad": "dead_letter"}[kind]
        assert each["total_ms"] >= each["wait_ms"] >= 0
    assert "dead letter: run_failed" in tails["errors"].said()

    page = " ".join(show(rig, topic, "bad-0").stdout.split())
    assert "outcome dead letter: run_failed" in page
    assert f"{rig.source}[0]@2, key k1" in page
    assert "produced" in page and "committed" in page
    page = " ".join(show(rig, topic, TRACE).stdout.split())
    assert f"trace {TRACE}" in page
    assert "model faulty" in page
    missing = show(rig, topic, "no-such-event")
    assert (missing.returncode, "it was not traced" in " ".join(missing.stderr.split())) == (2, True)


def test_a_missing_topic_of_spans_costs_nothing_but_spans(rig: Rig) -> None:
    tail = rig.tail()
    flags = ("--trace-topic", f"{rig.name}-nowhere")
    worker = rig.worker(FAULTY, *flags, OTEL_TRACES_SAMPLER="always_on", OTEL_BSP_MAX_QUEUE_SIZE="512")
    rig.send(click(f"e{n}") for n in range(3_000))
    tail.count(3_000, alive=worker)
    assert worker.stop() == 0
    assert "nothing else suffers" in worker.said()
    gone = show(rig, f"{rig.name}-nowhere", "e1")
    assert (gone.returncode, "does not exist" in gone.stderr) == (1, True)
