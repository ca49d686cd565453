"""A worker of `insight` on a real broker, on the verdicts alone: what it tells, it tells once, whoever is killed."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from confluent_kafka import Message, Producer

from consumer.codec import Decoder, Encoder, load_schema
from consumer.records import Event
from consumer.tasks.insight import InsightTask
from tests.broker.rig import Rig, WorkerProcess
from tests.waiting import wait_until

T0 = 1_772_323_200_000
BASE = 0x123456789ABCDEF
ANSWER = {
    "event_id": "q", "source_topic": "questions", "source_partition": 0, "source_offset": 1, "produced_at": T0,
    "answer": "Yes.", "known": True, "citations": [], "relevance": 0.7, "support": 1.0,
    "prompt_tokens": 1, "answer_tokens": 1, "finish_reason": "stop", "time": T0 + 77,
    "model": "answer", "model_version": "1",
}  # fmt: skip
WIDE = {"COLUMNS": "600"}
QUICK = ("--session-timeout-ms", "3000", "--transaction-timeout-ms", "3000")


def verdict(number: int, sketch: int) -> Event:
    return {
        **InsightTask.example,
        "event_id": f"m-{number}",
        "time": T0 + number * 1_000,
        "sender_domain": f"d{number % 7}.example",
        "sketch": sketch,
        "source_offset": number,
    }


def insight(message: Message) -> Any:
    (found,) = Decoder(load_schema("insight")).decode_many([message.value() or b""])
    return found


def test_a_campaign_is_told_once_although_workers_are_killed(
    bootstrap_servers: str, unique_name: Callable[[str], str], tmp_path: Path
) -> None:
    rig = Rig(bootstrap_servers, unique_name("insight"), tmp_path, partitions=1)
    other = f"{rig.name}-answers"
    inputs = ("--input-topics", f"spam_verdict={rig.source},answer={other}")
    common = ("--bootstrap-servers", rig.servers, "--group-id", rig.group, *inputs)
    outputs = ("--output-topic", rig.out, "--dead-letter-topic", rig.dead)

    def ran(*arguments: str) -> str:
        command = WorkerProcess.start(tmp_path / f"{arguments[0]}.log", [*arguments, *common, *outputs], WIDE)
        assert command.ended(60) == 0, command.said()
        return command.said()

    assert f"{rig.group}-state-{rig.source}: created" in ran(
        "topics", "create", "insight", "--partitions", "1"
    )
    assert f"{rig.group}-state-{rig.source} 1 partitions, compacted" in ran("check", "insight")

    producer, sent, dice = Producer({"bootstrap.servers": rig.servers}), [0], random.Random(3)

    def send(copies: int) -> None:
        """Copies of one mail, each with four mails of other kinds."""
        kinds = [
            BASE ^ (1 << dice.randrange(50)) if n % 5 == 0 else dice.getrandbits(63)
            for n in range(5 * copies)
        ]
        events = [verdict(sent[0] + n, kind) for n, kind in enumerate(kinds)]
        for event, value in zip(
            events, Encoder(load_schema("spam_verdict")).encode_many(events), strict=True
        ):
            assert isinstance(value, bytes)
            producer.produce(rig.source, value, event["sender_domain"])
        sent[0] += len(events)
        assert producer.flush(30) == 0

    def all_done() -> bool:
        return rig.committed() == sent[0]

    tail, books = rig.tail(), rig.tail(f"{rig.group}-state-{other}")
    (answer,) = Encoder(load_schema("answer")).encode_many([ANSWER])
    assert isinstance(answer, bytes)
    producer.produce(other, answer, "ann")
    send(6)
    first = rig.worker("insight", *inputs, *QUICK)
    wait_until(all_done, 60, first.said)
    first.kill()
    assert tail.read() == []
    send(6)
    second = rig.worker("insight", *inputs, *QUICK)
    tail.count(1, 60, second)
    second.kill()
    send(10)
    third = rig.worker("insight", *inputs, *QUICK)
    wait_until(all_done, 60, third.said)
    assert third.stop() == 0, third.said()[-2000:]
    tail.read(0.5)
    (message,) = tail.messages
    told = insight(message)
    assert message.topic() == rig.out
    assert (told["kind"], told["count"], told["since"]) == ("campaign", 10, T0)
    assert told["examples"] == ["m-0", "m-5", "m-10"]  # of before the first was killed
    assert told["event_id"] == "m-45"
    assert told["id"].startswith(f"{rig.source}/0/campaign/")
    assert "restored" in third.said()
    clocks = [json.loads(row.value() or b"")["clock"]["now"] for row in books.read(0.5) if row.key() == b"f"]
    assert clocks == [T0 + 77]  # the other topic's partition of the same number has books of its own
    rig.close()


def test_a_topic_that_does_not_say_what_it_has_is_named(tmp_path: Path) -> None:
    worker = WorkerProcess.start(
        tmp_path / "run.log",
        ["run", "insight", "--bootstrap-servers", "localhost:1", "--input-topics", "somewhere"],
        WIDE,
    )
    assert worker.ended(30) == 2
    assert "spam_verdict=somewhere" in worker.said()
