"""Worker processes and what an outsider sees of them: own Avro, own framing, own reader; nothing of the product."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fastavro
from confluent_kafka import Consumer, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
CLICK = json.loads((ROOT / "schemas" / "click.avsc").read_text())
SCORE = json.loads((ROOT / "schemas" / "click_score.avsc").read_text())
FAULTY = "tests.broker.fault_tasks:FaultyTask"
SCORING = "tests.broker.fault_tasks:ScoreTask"


def crc_64_avro(text: bytes) -> int:
    """As in the Avro specification."""
    empty = 0xC15D213AA4D7A795
    crc = empty
    for byte in text:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (empty if crc & 1 else 0)
    return crc


def frame_of(schema: dict[str, Any]) -> bytes:
    """The single-object frame: C3 01 and the fingerprint of the canonical form."""
    canonical = fastavro.schema.to_parsing_canonical_form(schema)
    return b"\xc3\x01" + crc_64_avro(canonical.encode()).to_bytes(8, "little")


CLICK_FRAME, SCORE_FRAME = frame_of(CLICK), frame_of(SCORE)


def avro(schema: dict[str, Any], datum: dict[str, Any]) -> bytes:
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, schema, datum)
    return stream.getvalue()


def click(name: str, product: str = "shoe", user: str = "somebody") -> bytes:
    """An encoded click."""
    event = {"id": name, "user": user, "product": product, "kind": "view", "time": int(time.time() * 1000)}
    return CLICK_FRAME + avro(CLICK, event)


def score(value: bytes | None) -> dict[str, Any]:
    """A decoded result."""
    assert value is not None and value.startswith(SCORE_FRAME), value
    stream = io.BytesIO(value[10:])
    found = fastavro.schemaless_reader(stream, SCORE, None)
    assert not stream.read(), "bytes behind a result"
    assert isinstance(found, dict)
    return found


@dataclass(slots=True)
class Rig:
    """The topics of one task on one broker, the workers on them, and a reader of what they publish."""

    servers: str
    name: str
    folder: Path
    partitions: int = 1
    config: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Topic settings for `in`, `out` and `dead`; None in the place of a topic's settings leaves it out."""
    workers: list[WorkerProcess] = field(default_factory=list)
    _tails: list[Tail] = field(default_factory=list)

    @property
    def source(self) -> str:
        return f"{self.name}-in"

    @property
    def out(self) -> str:
        return f"{self.name}-out"

    @property
    def dead(self) -> str:
        return f"{self.name}-dead"

    @property
    def group(self) -> str:
        return f"{self.name}-group"

    def create(self, *ends: str) -> None:
        admin = AdminClient({"bootstrap.servers": self.servers})
        wanted = [
            NewTopic(f"{self.name}-{end}", self.partitions, 1, config=dict(self.config.get(end, {})))
            for end in ends or ("in", "out", "dead")
        ]
        for made in admin.create_topics(wanted).values():
            made.result(timeout=30)

    def send(self, values: Iterable[bytes | None], **more: Any) -> None:
        """Each value with a key of its own, in order; `more` as for `produce`."""
        producer = Producer(
            {
                "bootstrap.servers": self.servers,
                "linger.ms": 5,
                "message.max.bytes": 64 << 20,
                "enable.idempotence": True,
            }
        )
        for n, value in enumerate(values):
            while True:
                try:
                    producer.produce(self.source, **({"key": f"k{n}".encode(), "value": value} | more))
                    break
                except BufferError:
                    producer.poll(0.1)
        assert producer.flush(60) == 0

    def worker(self, task: str = SCORING, *flags: str, **environment: str) -> WorkerProcess:
        """Start a worker; it has not joined yet when this returns."""
        started = WorkerProcess.start(
            self.folder / f"worker-{len(self.workers)}.log",
            [
                "run",
                task,
                *("--bootstrap-servers", self.servers, "--group-id", self.group),
                *("--input-topics", self.source, "--output-topic", self.out),
                *("--dead-letter-topic", self.dead, *flags),
            ],
            environment,
        )
        self.workers.append(started)
        return started

    def tail(self, *topics: str) -> Tail:
        tail = Tail(self.servers, topics or (self.out, self.dead), self.partitions)
        self._tails.append(tail)
        return tail

    def committed(self) -> int:
        """Sum of the group's committed offsets."""
        consumer = Consumer({"bootstrap.servers": self.servers, "group.id": self.group})
        try:
            places = [TopicPartition(self.source, p) for p in range(self.partitions)]
            return sum(max(0, found.offset) for found in consumer.committed(places, timeout=20))
        finally:
            consumer.close()

    def close(self) -> None:
        for worker in self.workers:
            worker.kill()
        for tail in self._tails:
            tail.close()


@dataclass(slots=True)
class WorkerProcess:
    """One `consumer` process with its log."""

    process: subprocess.Popen[bytes]
    log: Path

    @classmethod
    def start(
        cls, log: Path, arguments: Sequence[str], environment: Mapping[str, str], cwd: Path = ROOT
    ) -> WorkerProcess:
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "consumer", *arguments],
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**os.environ, **environment},
            )
        return cls(process, log)

    def said(self) -> str:
        """Everything it has said, on one line: the terminal width is not ours to know."""
        return " ".join(self.log.read_text(errors="replace").split())

    def wait_said(self, text: str, timeout_s: float = 30, times: int = 1) -> None:
        def there() -> bool:
            if self.said().count(text) >= times:
                return True
            assert self.process.poll() is None, f"ended without saying {text!r}: {self.said()[-3000:]}"
            return False

        wait_until(there, timeout_s, lambda: f"never said {text!r}: {self.said()[-3000:]}")

    def wait_joined(self, timeout_s: float = 30) -> None:
        self.wait_said("partitions are ours", timeout_s)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def ended(self, timeout_s: float) -> int:
        """Its exit code."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            before = len(self.said())
            self.signal(signal.SIGUSR1)
            wait_until(lambda: len(self.said()) > before, 5, "not even its threads can be shown")
            raise AssertionError(f"still runs after {timeout_s} s: {self.said()[-6000:]}") from None

    def stop(self, timeout_s: float = 30) -> int:
        """SIGTERM; its exit code."""
        self.signal(signal.SIGTERM)
        return self.ended(timeout_s)

    def kill(self) -> None:
        """Whatever state it is in."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class Tail:
    """A `read_committed` reader of whole topics that keeps what it has read."""

    def __init__(self, servers: str, topics: Sequence[str], partitions: int) -> None:
        self._consumer = Consumer(
            {
                "bootstrap.servers": servers,
                "group.id": "nobody",
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "fetch.wait.max.ms": 50,
                "log_level": 0,  # tests take the broker away
            }
        )
        self._consumer.assign([TopicPartition(t, p, 0) for t in topics for p in range(partitions)])
        self.messages: list[Message] = []

    def of(self, topic: str) -> list[Message]:
        return [m for m in self.messages if m.topic() == topic]

    def read(self, timeout_s: float = 0.2) -> list[Message]:
        """All so far, after waiting a moment for more."""
        for message in self._consumer.consume(10_000, timeout_s):
            if message.error() is None:
                self.messages.append(message)
            else:
                error = message.error()
                assert error and (error.retriable() or error.code() < 0), error
        return self.messages

    def until(
        self, done: Callable[[list[Message]], bool], timeout_s: float, alive: WorkerProcess | None = None
    ) -> list[Message]:
        def look() -> bool:
            if done(self.read()):
                return True
            if alive is not None:
                assert alive.process.poll() is None, f"the worker ended: {alive.said()[-3000:]}"
            return False

        wait_until(
            look, timeout_s, lambda: f"{len(self.messages)} read. {alive.said()[-3000:] if alive else ''}"
        )
        return self.messages

    def count(self, count: int, timeout_s: float = 30, alive: WorkerProcess | None = None) -> list[Message]:
        return self.until(lambda found: len(found) >= count, timeout_s, alive)

    def close(self) -> None:
        self._consumer.close()


def send_raw(servers: str, topic: str, value: bytes, header_name: bytes) -> None:
    """One record with a header name of any bytes, by Kafka's own protocol: our client only writes UTF-8."""

    def varint(number: int) -> bytes:
        number, out = number << 1 ^ number >> 63, b""
        while number > 0x7F:
            out, number = out + bytes([number & 0x7F | 0x80]), number >> 7
        return out + bytes([number])

    def sized(data: bytes) -> bytes:
        return varint(len(data)) + data

    record = sized(b"\0\0\0" + varint(-1) + sized(value) + varint(1) + sized(header_name) + sized(b"v"))
    now_ms = int(time.time() * 1000)
    body = struct.pack(">hiqqqhii", 0, 0, now_ms, now_ms, -1, -1, -1, 1) + record
    batch = struct.pack(">ibI", -1, 2, crc_32c(body)) + body
    batch = struct.pack(">qi", 0, len(batch)) + batch
    place = struct.pack(">ih", 1, len(topic)) + topic.encode() + struct.pack(">iii", 1, 0, len(batch))
    request = struct.pack(">hhihhhi", 0, 7, 1, -1, -1, -1, 10_000) + place + batch
    host, port = servers.split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(struct.pack(">i", len(request)) + request)
        answer = connection.recv(4096)
    # size, correlation id, one topic, its name, one partition, its number, then the error
    (error,) = struct.unpack_from(">h", answer, 4 + 4 + 4 + 2 + len(topic) + 4 + 4)
    assert error == 0, f"Kafka refused the record: {error}"


def crc_32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def headers_of(message: Message) -> dict[str, bytes | None]:
    """The last of a name counts."""
    return dict(message.headers() or [])  # type: ignore[arg-type]  # its stubs allow for more than can come


def origin(letter: Message) -> tuple[int, int]:
    """Partition and offset of the record that a dead letter speaks of."""
    headers = headers_of(letter)
    return int(headers["dead_letter.partition"] or b""), int(headers["dead_letter.offset"] or b"")


def header(letter: Message, name: str) -> str:
    return str(headers_of(letter).get(f"dead_letter.{name}") or b"", "utf-8")


def assert_each_once(ids: Iterable[str], expected: Iterable[str]) -> None:
    """Every expected id exactly once, and nothing else."""
    counts, wanted = Counter(ids), set(expected)
    doubled = sorted(i for i, n in counts.items() if n > 1)
    missing, strange = sorted(wanted - counts.keys()), sorted(counts.keys() - wanted)
    assert not (doubled or missing or strange), (
        f"doubled {len(doubled)} {doubled[:5]}, missing {len(missing)} {missing[:5]}, strange {strange[:5]}"
    )
