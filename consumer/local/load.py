"""Kafka's side of the benchmark: fill topics, follow a group's progress, watch latency."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from consumer.errors import Fatal
from consumer.local.topics import TopicSpec, ensure_topics

__all__ = ["Follower", "fill", "latencies_s", "make_topic"]


def make_topic(servers: str, prefix: str, partitions: int) -> str:
    """A new topic with a name of its own."""
    name = f"{prefix}-{uuid.uuid4().hex[:8]}"
    ensure_topics({"bootstrap.servers": servers}, [TopicSpec(name, partitions)])
    return name


def fill(servers: str, topic: str, rows: Iterable[tuple[bytes, bytes]]) -> None:
    """Send (key, value) pairs as fast as they are taken."""
    producer = Producer(
        {"bootstrap.servers": servers, "linger.ms": 20, "queue.buffering.max.messages": 500_000}
    )
    for key, value in rows:
        while True:
            try:
                producer.produce(topic, key=key, value=value)
                break
            except BufferError:
                producer.poll(0.1)
    if producer.flush(120):
        raise Fatal(f"the broker at {servers} does not take the benchmark's records")


@dataclass(frozen=True, slots=True)
class Follower:
    """How far a group has come in a topic, by its committed offsets."""

    admin: AdminClient
    outsider: Consumer
    """Never joins.  The admin client's own call for offsets crashes the interpreter while the coordinator moves."""
    group: str

    places: Sequence[TopicPartition]

    @classmethod
    def of(cls, servers: str, topic: str, group: str) -> Follower:
        conf = {"bootstrap.servers": servers, "group.id": group, "isolation.level": "read_uncommitted"}
        admin = AdminClient({"bootstrap.servers": servers})
        partitions = admin.list_topics(topic, timeout=10).topics[topic].partitions
        return cls(admin, Consumer(conf), group, [TopicPartition(topic, number) for number in partitions])

    def members(self) -> int:
        """Members of the group that have partitions."""
        found = self.admin.describe_consumer_groups([self.group])[self.group].result()
        return sum(bool(member.assignment.topic_partitions) for member in found.members)

    def done(self) -> int:
        """Records behind the committed offsets of all partitions; 0 while the group has no coordinator."""
        try:
            found = self.outsider.committed(list(self.places), timeout=10)
        except KafkaException:
            return 0
        return sum(max(0, place.offset) for place in found)


def latencies_s(
    servers: str,
    topic_in: str,
    topic_out: str,
    rows: Sequence[tuple[str, bytes, bytes]],
    rate_per_s: float,
    event_id: Callable[[bytes], str],
) -> list[float]:
    """Send (id, key, value) rows at a steady rate whatever comes back (open loop), and wait for all results.

    `event_id(value)` reads the id out of a result.  Seconds from the moment when each event was due to the moment when
    a `read_committed` reader had its result.
    """
    due: dict[str, float] = {}
    seen: dict[str, float] = {}
    reader = Consumer(
        {
            "bootstrap.servers": servers,
            "group.id": f"bench-{uuid.uuid4().hex[:8]}",
            "isolation.level": "read_committed",
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "fetch.wait.max.ms": 100,
        }
    )
    reader.subscribe([topic_out])
    sender = threading.Thread(target=_send, args=(servers, topic_in, rows, rate_per_s, due), daemon=True)
    deadline = time.monotonic() + len(rows) / rate_per_s + 60
    while not reader.assignment() and time.monotonic() < deadline:
        reader.poll(0.1)
    sender.start()
    while len(seen) < len(rows):
        record = reader.poll(0.2)
        if record is not None and not record.error():
            name = event_id(record.value() or b"")
            if name in due:
                seen.setdefault(name, time.monotonic())
        if time.monotonic() > deadline:
            raise Fatal(f"only {len(seen)} of {len(rows)} results came back in time")
    reader.close()
    sender.join()
    return [seen[name] - due[name] for name, _, _ in rows]


def _send(
    servers: str,
    topic: str,
    rows: Sequence[tuple[str, bytes, bytes]],
    rate_per_s: float,
    due: dict[str, float],
) -> None:
    producer = Producer({"bootstrap.servers": servers, "linger.ms": 0})
    begin = time.monotonic() + 0.1
    for number, (name, key, value) in enumerate(rows):
        due[name] = begin + number / rate_per_s
        time.sleep(max(0.0, due[name] - time.monotonic()))
        producer.produce(topic, key=key, value=value)
        producer.poll(0)
    producer.flush(30)
