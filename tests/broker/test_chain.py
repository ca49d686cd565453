"""Proof: every e-mail has exactly one result or dead letter, in order, whatever happens to workers and broker.

    mails (12) ──► group A: FirstStage ──► checked (12) ──► group B: SecondStage ──► verdicts (12)
                          └──► dead letters (3)

While mails flow, workers are killed, stopped past their time-outs, ended and added, and the broker is restarted, in a
random order: CONSUMER_TEST_SEED repeats one.  What comes out is judged by `oracle`, which knows nothing of our code.
"""

from __future__ import annotations

import os
import random
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from confluent_kafka import KafkaException

from consumer.local.broker import EmbeddedBroker
from tests.broker.oracle import (
    VERDICT,
    Avro,
    Expected,
    Mailer,
    Watcher,
    check,
    lag,
    make_topics,
    members,
    read_all,
)
from tests.broker.workers import WorkerProcess, Workers
from tests.waiting import wait_until

TASKS = "tests.broker.tasks_for_tests"
CHECKED = Avro(Path(__file__).with_name("checked_mail.avsc"))
SESSION_TIMEOUT_MS = 3_000
TRANSACTION_TIMEOUT_MS = 5_000
PORTION = 2_500
CROWDED = {"max_chunk_records": 100, "max_in_flight_records": 300, "commit_interval_ms": 700}
"""Settings of a worker that often has no room and must hold its reading."""
ONCE = (
    "kill_named",
    "kill_named_and_wait",
    "kill_unnamed",
    "pause",
    "pause",
    "pause_past_transaction",
    "pause_and_terminate",
    "sleep_through_the_next",
    "terminate",
    "add",
    "restart_broker",
)


def new_seed() -> int:
    """From CONSUMER_TEST_SEED, else a new one; printed, so that a failure can be repeated."""
    seed = int(os.environ.get("CONSUMER_TEST_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"CONSUMER_TEST_SEED={seed}")
    return seed


@dataclass(slots=True)
class Stage:
    """A worker group: what it reads and writes."""

    task: str
    group: str
    reads: str
    writes: str
    dead: str
    options: Mapping[str, Any] = field(default_factory=lambda: {"max_delay_ms": 100})


@dataclass(slots=True)
class Chain:
    """Two stages under attack.  `chance` decides everything that happens."""

    broker: EmbeddedBroker
    workers: Workers
    watcher: Watcher
    mailer: Mailer
    stages: tuple[Stage, ...]
    chance: random.Random
    began: float = field(default_factory=time.monotonic)
    stage_of: dict[WorkerProcess, Stage] = field(default_factory=dict)
    gone: set[WorkerProcess] = field(default_factory=set)
    """Workers that the test itself has ended."""
    asleep: list[WorkerProcess] = field(default_factory=list)
    """Workers that are stopped until the next action is over."""

    @property
    def servers(self) -> str:
        return self.broker.bootstrap_servers

    def start(self, stage: Stage, instance_name: str = "") -> WorkerProcess:
        worker = self.workers.start(
            stage.task,
            instance_name=instance_name,
            options=stage.options,
            bootstrap_servers=self.servers,
            group_id=stage.group,
            input_topics=stage.reads,
            output_topic=stage.writes,
            dead_letter_topic=stage.dead,
            torch_threads=1,
            **self.chance.choice(({}, CROWDED)),
            session_timeout_ms=SESSION_TIMEOUT_MS,
            transaction_timeout_ms=TRANSACTION_TIMEOUT_MS,
        )
        self.stage_of[worker] = stage
        return worker

    def say(self, what: str) -> None:
        print(f"{time.monotonic() - self.began:6.1f} s  {what}; visible: {dict(self.watcher.counts)}")

    def progress(self, count: int) -> None:
        """Waits until `count` more records are visible, or all that there can be."""
        dead = sum(1 for mail in self.mailer.expected.values() if mail.dead)
        goal = min(self.watcher.total + count, len(self.stages) * (len(self.mailer.expected) - dead) + dead)
        self.wait_for_visible(goal)

    def wait_for_visible(self, goal: int) -> None:
        """Waits until `goal` records are visible; fails when a worker ends by itself."""

        def reached() -> bool:
            self.all_well()
            return self.watcher.total >= goal

        wait_until(
            reached, 60, lambda: f"{goal} visible records; there are {self.watcher.counts} {self.state()}"
        )

    def state(self) -> str:
        return f"of {len(self.mailer.expected)} mails; running: {self.workers.running}"

    def pick(self, *, named: bool | None = None) -> WorkerProcess:
        awake = [w for w in self.workers.running if w not in self.asleep]
        found = [w for w in awake if named is None or named == bool(w.instance_name)]
        return self.chance.choice(found)

    def attack(self, action: str) -> None:
        self.say(action)
        sleeping = list(self.asleep)
        getattr(self, action)()
        for worker in sleeping:
            worker.resume()
            self.asleep.remove(worker)
        self.all_well()

    def all_well(self) -> None:
        for worker in self.workers.all:
            assert worker.running or worker in self.gone, (
                f"{worker} ended by itself with {worker.process.returncode}:\n{worker.log}"
            )

    def kill_named(self) -> None:
        worker = self.pick(named=True)
        self.kill(worker)
        self.start(self.stage_of[worker], worker.instance_name)

    def kill_named_and_wait(self) -> None:
        worker = self.pick(named=True)
        self.until_expelled(worker, lambda: self.kill(worker))
        self.start(self.stage_of[worker], worker.instance_name)

    def kill_unnamed(self) -> None:
        worker = self.pick(named=False)
        self.kill(worker)
        self.start(self.stage_of[worker])

    def kill(self, worker: WorkerProcess) -> None:
        self.gone.add(worker)
        worker.kill()

    def pause(self) -> None:
        worker = self.pick()
        self.until_expelled(worker, worker.pause)
        self.progress(self.chance.randrange(300))
        worker.resume()

    def pause_past_transaction(self) -> None:
        worker = self.pick()
        until = time.monotonic() + TRANSACTION_TIMEOUT_MS / 1000 + 2
        worker.pause()
        wait_until(lambda: time.monotonic() > until, 60, "the transaction time-out")
        worker.resume()

    def pause_and_terminate(self) -> None:
        """It is told to stop while it is stopped: it must find out that it has lost everything."""
        worker = self.pick()
        self.until_expelled(worker, worker.pause)
        self.gone.add(worker)
        worker.terminate()
        worker.resume()
        began = time.monotonic()
        code = worker.ended()
        self.say(f"{worker} ended with {code} after {time.monotonic() - began:.1f} s")
        assert code == 0, worker.log
        self.start(self.stage_of[worker], worker.instance_name)

    def sleep_through_the_next(self) -> None:
        """Stopped for the next action, however long that takes."""
        worker = self.pick()
        worker.pause()
        self.asleep.append(worker)

    def until_expelled(self, worker: WorkerProcess, fall: Callable[[], None]) -> None:
        """Waits until the group has noticed that a member fell silent, or must have if it was one at that moment."""
        group = self.stage_of[worker].group
        worker.wait_for("partitions are ours")
        before = self.members(group)
        fall()
        surely = time.monotonic() + 4 * SESSION_TIMEOUT_MS / 1000
        wait_until(
            lambda: before - self.members(group) or time.monotonic() > surely, 60, "never", every_s=0.2
        )

    def members(self, group: str) -> set[str]:
        try:
            return set(members(self.servers, group))
        except KafkaException:
            return set()

    def terminate(self) -> None:
        worker = self.pick()
        self.gone.add(worker)
        worker.terminate()
        code = worker.ended()
        assert code == 0, worker.log
        self.start(self.stage_of[worker], worker.instance_name)

    def add(self) -> None:
        self.start(self.chance.choice(self.stages))

    def restart_broker(self) -> None:
        self.broker.restart()


def test_chain(private_broker: EmbeddedBroker, tmp_path: Path, unique_name: Callable[[str], str]) -> None:
    seed = new_seed()
    chance = random.Random(seed)
    servers = private_broker.bootstrap_servers
    make_topics(servers, mails=12, checked=12, verdicts=12, dead=3, dead_again=3)
    first = Stage(f"{TASKS}:FirstStage", unique_name("a"), "mails", "checked", "dead")
    second = Stage(f"{TASKS}:SecondStage", unique_name("b"), "checked", "verdicts", "dead_again")
    actions = list(ONCE) * int(os.environ.get("CONSUMER_TEST_CHAIN_ROUNDS") or 1)
    chance.shuffle(actions)
    with (
        Workers(tmp_path) as workers,
        Watcher(servers, ["checked", "dead", "verdicts", "dead_again"]) as watcher,
    ):
        mailer = Mailer(servers, "mails", seed)
        chain = Chain(private_broker, workers, watcher, mailer, (first, second), chance)
        for stage, name in ((first, "one"), (first, "two"), (first, ""), (second, "one"), (second, "")):
            chain.start(stage, name)
        for action in actions:
            mailer.send(PORTION)
            chain.progress(chance.randrange(2 * PORTION))
            chain.attack(action)
        mailer.send(PORTION)
        for worker in chain.asleep:
            worker.resume()
        wait_until(lambda: lag(servers, first.group, "mails") == 0, 90, chain.state)
        results, letters = read_all(servers, "checked"), read_all(servers, "dead")
        chain.say("the first stage is done")
        chain.wait_for_visible(len(letters) + 2 * len(results))
        codes = workers.stop()
        chain.say(f"stopped: {list(codes.values())}")
        assert set(codes.values()) == {0}, "\n".join(f"{w}: {c}\n{w.log}" for w, c in codes.items() if c)
    check(
        mailer.expected,
        results,
        letters,
        schema=CHECKED,
        content=lambda event, mail: event["checksum"] == mail.checksum and event["id"] == mail.id,
    )
    passed_on = {
        seen.place: Expected(event["id"], seen.key or b"", event["checksum"])
        for seen in results
        for event in [CHECKED.decode(seen.value)]
    }
    check(passed_on, read_all(servers, "verdicts"), read_all(servers, "dead_again"))
    assert len(mailer.expected) == PORTION * (len(actions) + 1)


def test_chain_with_the_real_model(
    private_broker: EmbeddedBroker, tmp_path: Path, unique_name: Callable[[str], str]
) -> None:
    """The spam task instead of a stand-in: the same text gets the same verdict, whoever works on it beside what."""
    seed = new_seed()
    chance = random.Random(seed)
    servers = private_broker.bootstrap_servers
    make_topics(servers, mails=6, verdicts=6, dead=3)
    stage = Stage("spam", unique_name("spam"), "mails", "verdicts", "dead", options={})
    words = (
        "free money meeting offer tomorrow report viagra invoice lunch click project winner the a of".split()
    )
    made = [" ".join(chance.choices(words, k=chance.choice((5, 40, 200)))) for _ in range(60)]
    texts = list(
        {zlib.crc32(text.encode()) % 1024: text for text in made}.values()
    )  # told apart by their checksums
    with Workers(tmp_path) as workers, Watcher(servers, ["verdicts", "dead"]) as watcher:
        mailer = Mailer(servers, "mails", seed, keys=50, broken=0.06, bad_subjects=(), bodies=texts)
        chain = Chain(private_broker, workers, watcher, mailer, (stage,), chance)
        for name in ("one", "two"):
            chain.start(stage, name)
        mailer.send(300)
        chain.start(stage)
        actions = ["kill_named", "pause", "terminate"]
        chance.shuffle(actions)
        for action in actions:
            mailer.send(200)
            chain.progress(chance.randrange(1, 150))
            chain.attack(action)
        wait_until(lambda: lag(servers, stage.group, "mails") == 0, 60, chain.state)
        codes = workers.stop()
        chain.say(f"stopped: {list(codes.values())}")
        assert set(codes.values()) == {0}, "\n".join(f"{w}: {c}\n{w.log}" for w, c in codes.items() if c)
    verdicts = read_all(servers, "verdicts")
    check(
        mailer.expected,
        verdicts,
        read_all(servers, "dead"),
        content=lambda event, mail: event["model"] == "spam",
    )
    by_text = defaultdict(list)
    for verdict in verdicts:
        event = VERDICT.decode(verdict.value)
        assert (event["label"] == "spam") == (event["probability"] >= event["threshold"]), event
        origin = event["source_topic"], event["source_partition"], event["source_offset"]
        by_text[mailer.expected[origin].checksum].append(event["probability"])
    spread = max(max(found) - min(found) for found in by_text.values())
    assert spread <= 0.02, "the same text got different verdicts"
    assert len({round(found[0], 2) for found in by_text.values()}) > 5, "all texts got the same verdict"
