"""Every shipped task, on a real broker, from its topics to the result of its own example."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from confluent_kafka import Producer

from consumer.codec import Decoder, Encoder, load_schema
from consumer.tasks import SHIPPED, find_task
from tests.broker.rig import Rig, WorkerProcess


@pytest.mark.parametrize(
    "name", sorted(SHIPPED.keys() - {"insight"})
)  # one event alone is no insight: test_insight_chain
def test_the_example_gets_its_result(
    name: str, bootstrap_servers: str, unique_name: Callable[[str], str], tmp_path: Path
) -> None:
    task = find_task(name)
    rig = Rig(bootstrap_servers, unique_name(name), tmp_path, partitions=2)
    tables = ",".join(f"{table}={rig.name}-{table}" for table in task.tables)
    flags = ("--table-topics", tables) if tables else ()
    common = ("--bootstrap-servers", rig.servers, "--group-id", rig.group, "--input-topics", rig.source)
    topics = ("--output-topic", rig.out, "--dead-letter-topic", rig.dead)
    made = WorkerProcess.start(
        tmp_path / "topics.log", ["topics", "create", name, "--partitions", "2", *common, *topics, *flags], {}
    )
    assert made.ended(60) == 0, made.said()
    (value,) = Encoder(load_schema(task.events[0])).encode_many([dict(task.example)])
    assert isinstance(value, bytes)
    producer = Producer({"bootstrap.servers": rig.servers})
    producer.produce(rig.source, value, "somebody")
    producer.produce(rig.source, b"garbage", "somebody")
    assert producer.flush(30) == 0
    tail = rig.tail()
    worker = rig.worker(name, *flags)
    tail.count(2, 120, worker)
    assert worker.stop() == 0, worker.said()[-2000:]
    tail.read(0.5)
    (message,) = tail.of(rig.out)
    (result,) = Decoder(load_schema(task.result)).decode_many([message.value()])
    assert isinstance(result, dict)
    assert (result["event_id"], result["model"]) == (task.example["id"], name)
    assert result["model_version"] != "0"
    assert message.key() == b"somebody"
    assert len(tail.of(rig.dead)) == 1
    assert worker.said().endswith("}"), "the last line on stderr is not ours"
    rig.close()
