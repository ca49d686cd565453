"""Keyed state on a real broker: whatever happens to the workers, neither behind nor ahead of the committed input."""

from __future__ import annotations

import io
import json
import random
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fastavro
import pytest
from confluent_kafka import Message, Producer
from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType  # type: ignore[attr-defined]
from confluent_kafka.cimpl import NewTopic

from tests.broker.rig import Rig, WorkerProcess, assert_each_once, click, frame_of, header
from tests.waiting import wait_until

COUNTING = "tests.broker.state_tasks:CountTask"
LOOKUP = "tests.broker.state_tasks:LookupTask"
COUNTED = json.loads(Path(__file__).with_name("counted_click.avsc").read_text())
WIDE = {"COLUMNS": "300"}
FRAME = frame_of(COUNTED)
QUICK = ("--session-timeout-ms", "3000", "--transaction-timeout-ms", "3000")


@pytest.fixture
def rig(bootstrap_servers: str, unique_name: Callable[[str], str], tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(bootstrap_servers, unique_name("state"), tmp_path, partitions=4)
    rig.create()
    create_changelog(rig)
    yield rig
    rig.close()


def create_changelog(rig: Rig, partitions: int = 4, **config: str) -> None:
    admin = AdminClient({"bootstrap.servers": rig.servers})
    topic = NewTopic(f"{rig.group}-state", partitions, 1, config={"cleanup.policy": "compact", **config})
    admin.create_topics([topic])[topic.topic].result(timeout=30)


def counted(message: Message) -> dict[str, Any]:
    value = message.value()
    assert value is not None and value.startswith(FRAME)
    found = fastavro.schemaless_reader(io.BytesIO(value[len(FRAME) :]), COUNTED, None)
    assert isinstance(found, dict)
    return found


def send(rig: Rig, clicks: list[tuple[str, str]], product: str = "shoe") -> None:
    """(id, user) each, in order and under the user as key."""
    producer = Producer({"bootstrap.servers": rig.servers, "enable.idempotence": True, "linger.ms": 5})
    for name, user in clicks:
        producer.produce(rig.source, click(name, product, user), key=user)
    assert producer.flush(60) == 0


def assert_counts_are_gapless(messages: list[Message]) -> None:
    """Each user and each partition was counted 1, 2, 3, ... in the order of the input."""
    by_key: dict[bytes, list[dict[str, Any]]] = defaultdict(list)
    by_partition: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for message in messages:
        found = counted(message)
        by_key[message.key() or b""].append(found)
        by_partition[found["source_partition"]].append(found)
    for some in by_key.values():
        some.sort(key=lambda each: int(each["source_offset"]))
        numbers = list(range(1, len(some) + 1))
        assert [each["recalled"] for each in some] == numbers
        assert [each["finished"] for each in some] == numbers
    for some in by_partition.values():
        some.sort(key=lambda each: int(each["source_offset"]))
        assert [each["in_partition"] for each in some] == list(range(1, len(some) + 1))


def test_state_survives_kills_and_rebalances(rig: Rig) -> None:
    """Workers are killed, frozen past their session, ended and added while clicks flow."""
    chance = random.Random(4)
    tail = rig.tail()
    workers = [rig.worker(COUNTING, "--max-chunk-records", "50", *QUICK) for _ in range(2)]
    sent: list[tuple[str, str]] = []

    def more(count: int) -> None:
        clicks = [(f"id-{len(sent) + n}", f"user-{chance.randrange(40)}") for n in range(count)]
        send(rig, clicks)
        sent.extend(clicks)

    def new_worker() -> WorkerProcess:
        return rig.worker(COUNTING, "--max-chunk-records", "50", *QUICK)

    more(1_000)
    tail.count(300, 60, workers[0])
    more(1_000)
    workers.pop(0).kill()
    workers.append(new_worker())
    tail.count(1_200, 60, workers[0])
    more(1_000)
    workers[0].signal(signal.SIGSTOP)
    tail.count(1_800, 60, workers[1])  # of the partitions of the other one
    time.sleep(4)  # past the session and the transaction: what is tested is that it comes back too late
    workers[0].signal(signal.SIGCONT)
    more(1_000)
    workers.append(new_worker())
    tail.count(3_200, 60, workers[1])
    more(1_000)
    assert workers.pop(1).stop() == 0
    tail.count(len(sent), 60, workers[0])
    for worker in workers:
        worker.wait_said("is ready on")  # it listens to signals by then
        assert worker.stop() == 0, worker.said()[-3000:]
    tail.read(1.0)
    results = tail.of(rig.out)
    assert tail.of(rig.dead) == []
    assert_each_once((counted(m)["event_id"] for m in results), (name for name, _ in sent))
    assert_counts_are_gapless(results)


def test_state_is_restored_by_the_next_worker(rig: Rig) -> None:
    send(rig, [(f"a-{n}", f"user-{n % 7}") for n in range(700)])
    tail = rig.tail()
    first = rig.worker(COUNTING)
    tail.count(700, alive=first)
    assert first.stop() == 0
    send(rig, [(f"b-{n}", f"user-{n % 7}") for n in range(70)])
    second = rig.worker(COUNTING)
    tail.count(770, alive=second)
    assert second.stop() == 0
    assert_counts_are_gapless(tail.of(rig.out))
    assert "restored" in second.said()


def test_a_failing_event_leaves_the_state_as_it_was(rig: Rig) -> None:
    """What `recall` or `finish` had changed before it raised is forgotten; what came before it stays."""
    send(rig, [("a", "u")])
    send(rig, [("b", "u")], "raise:recall")
    send(rig, [("c", "u")])
    send(rig, [("d", "u")], "raise:finish")
    send(rig, [("e", "u")])
    send(rig, [("f", "u")], "grow:100000")
    send(rig, [("g", "u")])
    rig.send([click("h")], key=None, partition=0)
    tail = rig.tail()
    worker = rig.worker(COUNTING)
    tail.count(8, alive=worker)
    assert worker.stop() == 0
    found = {counted(m)["event_id"]: counted(m) for m in tail.of(rig.out)}
    assert {name: (each["recalled"], each["finished"]) for name, each in found.items()} == {
        "a": (1, 1),
        "c": (2, 2),
        "e": (4, 3),  # `d` was recalled and not finished
        "g": (5, 4),
    }
    reasons = {(header(m, "stage"), header(m, "reason")) for m in tail.of(rig.dead)}
    assert reasons == {
        ("recall", "recall_failed"),
        ("finish", "finish_failed"),
        ("recall", "state_too_large"),
        ("recall", "no_key"),
    }


def test_what_is_not_touched_for_long_is_forgotten(rig: Rig) -> None:
    """By the records' own time, and deleted from the changelog as well."""
    now_ms = int(time.time() * 1000)
    rig.send([click("a", user="u")], key="u", timestamp=now_ms - 100_000, partition=0)
    rig.send([click("b", user="u")], key="u", timestamp=now_ms - 95_000, partition=0)
    rig.send([click("c", user="v")], key="v", timestamp=now_ms - 10_000, partition=0)
    rig.send([click("d", user="u")], key="u", timestamp=now_ms, partition=0)
    tail = rig.tail()
    changelog = rig.tail(f"{rig.group}-state")
    worker = rig.worker(COUNTING, "--state-ttl-ms", "60000", "--max-chunk-records", "1")
    tail.count(4, alive=worker)
    assert worker.stop() == 0
    found = {counted(m)["event_id"]: counted(m)["finished"] for m in tail.of(rig.out)}
    assert found == {"a": 1, "b": 2, "c": 1, "d": 1}
    deleted = [m.key() for m in changelog.read(1.0) if m.value() is None]
    assert deleted == [b"r:u", b"f:u"]


@pytest.mark.parametrize("partitions", [None, 2], ids=["missing", "too few partitions"])
def test_a_changelog_that_does_not_fit_is_named(
    bootstrap_servers: str, unique_name: Callable[[str], str], tmp_path: Path, partitions: int | None
) -> None:
    rig = Rig(bootstrap_servers, unique_name("state"), tmp_path, partitions=4)
    rig.create()
    if partitions:
        create_changelog(rig, partitions)
    worker = rig.worker(COUNTING)
    assert worker.ended(30) == 1
    assert f"{rig.group}-state" in worker.said()
    rig.close()


def test_topics_create_makes_the_changelog(
    bootstrap_servers: str, unique_name: Callable[[str], str], tmp_path: Path
) -> None:
    rig = Rig(bootstrap_servers, unique_name("state"), tmp_path, partitions=4)
    rig.create("in")
    made = WorkerProcess.start(
        tmp_path / "topics.log",
        [
            *("topics", "create", COUNTING, "--bootstrap-servers", rig.servers, "--group-id", rig.group),
            *("--input-topics", rig.source, "--output-topic", rig.out, "--dead-letter-topic", rig.dead),
        ],
        {},
    )
    assert made.ended(30) == 0, made.said()
    admin = AdminClient({"bootstrap.servers": rig.servers})
    topics = admin.list_topics(timeout=10).topics
    assert len(topics[f"{rig.group}-state"].partitions) == 4
    resource = ConfigResource(ResourceType.TOPIC, f"{rig.group}-state")
    (reply,) = admin.describe_configs([resource]).values()
    assert reply.result()["cleanup.policy"].value == "compact"


def test_a_table_is_whole_before_the_first_event_and_kept_up_to_date(rig: Rig) -> None:
    shelf = f"{rig.name}-shelf"
    admin = AdminClient({"bootstrap.servers": rig.servers})
    admin.create_topics([NewTopic(shelf, 3, 1, config={"cleanup.policy": "compact"})])[shelf].result(30)
    producer = Producer({"bootstrap.servers": rig.servers})

    def put(key: str, value: bytes | None) -> None:
        producer.produce(shelf, value, key)
        assert producer.flush(20) == 0

    for n in range(5_000):
        producer.produce(shelf, click(f"row-{n}"), f"p-{n}")
        producer.poll(0)
    put("p-0", b"garbage")  # leaves the row as it was
    put("p-1", None)
    send(rig, [("a", "u")], "p-0")
    tail = rig.tail()
    worker = rig.worker(LOOKUP, "--table-topics", f"shelf={shelf}")
    tail.count(1, alive=worker)
    first = counted(tail.of(rig.out)[0])
    assert (first["recalled"], first["finished"]) == (1, 4_999)
    assert "is left as it was" in worker.said()
    put("new", click("row-new"))

    def sees_the_new_row() -> bool:
        send(rig, [(f"b-{len(tail.messages)}", "u")], "new")
        latest = tail.count(len(tail.messages) + 1, alive=worker)[-1]
        return bool(counted(latest)["recalled"])

    wait_until(sees_the_new_row, 20, "the new row is not seen")
    assert worker.stop() == 0


def test_a_missing_table_is_named(rig: Rig) -> None:
    worker = rig.worker(LOOKUP, "--table-topics", f"shelf={rig.name}-nowhere")
    assert worker.ended(30) == 1
    assert f"{rig.name}-nowhere" in worker.said()
    assert "a table of the task" in worker.said()


def test_the_doctor_looks_at_state_and_tables(rig: Rig) -> None:
    common = ("--bootstrap-servers", rig.servers, "--group-id", rig.group, "--input-topics", rig.source)
    topics = ("--output-topic", rig.out, "--dead-letter-topic", rig.dead)

    def check(task: str, *more: str) -> tuple[int, str]:
        doctor = WorkerProcess.start(rig.folder / "check.log", ["check", task, *common, *topics, *more], WIDE)
        return doctor.ended(60), doctor.said()

    code, said = check(COUNTING)
    assert code == 0, said
    assert f"{rig.group}-state 4 partitions, compacted" in said
    code, said = check(COUNTING, "--state-topic", rig.out)
    assert code == 1
    assert "a topic of its own" in said
    admin = AdminClient({"bootstrap.servers": rig.servers})
    admin.create_topics([NewTopic(f"{rig.name}-plain", 4, 1)])[f"{rig.name}-plain"].result(30)
    code, said = check(COUNTING, "--state-topic", f"{rig.name}-plain")
    assert code == 1
    assert "cleanup.policy=delete" in said
    code, said = check(LOOKUP, "--table-topics", "shelf=nowhere-at-all")
    assert code == 1
    assert "nowhere-at-all" in said
