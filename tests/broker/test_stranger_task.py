"""A stranger's task: one file and one schema in a folder of their own, no line of the product touched."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fastavro
from confluent_kafka import Producer

from tests.broker.rig import ROOT, Tail, WorkerProcess, avro, frame_of

MODULE = '''
from consumer.task import Task


class Shout(Task):
    """Answers a greeting in capitals."""

    name = "shout"
    events = ("greeting",)
    result = "shouted"
    example = {"id": "g-1", "text": "hello"}
    version = "1"

    def __init__(self, mark="!"):
        self.mark = mark

    def run(self, items):
        return [{"text": event["text"].upper() + self.mark} for event in items]
'''


def field(name: str, kind: str) -> dict[str, str]:
    return {"name": name, "type": kind}


GREETING: dict[str, Any] = {
    "type": "record",
    "name": "Greeting",
    "namespace": "stranger",
    "fields": [field("id", "string"), field("text", "string")],
}
SHOUTED: dict[str, Any] = {
    "type": "record",
    "name": "Shouted",
    "namespace": "stranger",
    "fields": [
        field("event_id", "string"),
        field("source_topic", "string"),
        field("source_partition", "int"),
        field("source_offset", "long"),
        field("model", "string"),
        field("model_version", "string"),
        {"name": "produced_at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        field("text", "string"),
    ],
}


def test_a_stranger_adds_a_task_and_runs_it(
    bootstrap_servers: str, unique_name: Callable[[str], str], tmp_path: Path
) -> None:
    home = tmp_path / "stranger"
    home.mkdir()
    (home / "my_module.py").write_text(textwrap.dedent(MODULE))
    (home / "greeting.avsc").write_text(json.dumps(GREETING))
    (home / "shouted.avsc").write_text(json.dumps(SHOUTED))
    assert len(MODULE.strip().splitlines()) <= 20
    names = {"source": unique_name("greetings"), "out": unique_name("shouted"), "dead": unique_name("dead")}
    where = [
        *("--bootstrap-servers", bootstrap_servers, "--input-topics", names["source"]),
        *("--output-topic", names["out"], "--dead-letter-topic", names["dead"]),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}  # as if the product were installed
    consumer = [sys.executable, "-m", "consumer"]
    made = subprocess.run(
        [*consumer, "topics", "create", "my_module:Shout", "--partitions", "1", *where],
        cwd=home, env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stdout + made.stderr

    producer = Producer({"bootstrap.servers": bootstrap_servers})
    for n in range(10):
        event = {"id": f"g-{n}", "text": f"hello {n}"}
        producer.produce(names["source"], frame_of(GREETING) + avro(GREETING, event), key=f"k{n}")
    assert producer.flush(30) == 0

    log = tmp_path / "worker.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*consumer, "run", "my_module:Shout", "--option", "mark=?", "--group-id", unique_name("group"), *where],
            cwd=home, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment,
        )  # fmt: skip
    worker = WorkerProcess(process, log)
    tail = Tail(bootstrap_servers, [names["out"], names["dead"]], 1)
    try:
        began_ms = time.time() * 1000
        found = tail.count(10, alive=worker)
        assert worker.stop() == 0
    finally:
        worker.kill()
        tail.close()
    for n, message in enumerate(found):
        value = message.value() or b""
        assert message.topic() == names["out"]
        assert message.key() == f"k{n}".encode()
        assert value.startswith(frame_of(SHOUTED))
        result = fastavro.schemaless_reader(io.BytesIO(value[10:]), SHOUTED, None)
        assert isinstance(result, dict)
        produced_at = result.pop("produced_at").timestamp() * 1000
        assert began_ms - 60_000 < produced_at < time.time() * 1000 + 60_000
        assert result == {
            "event_id": f"g-{n}",
            "source_topic": names["source"],
            "source_partition": 0,
            "source_offset": n,
            "model": "shout",
            "model_version": "1",
            "text": f"HELLO {n}?",
        }
