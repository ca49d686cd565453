"""What an outsider writes and sees: e-mails in, results and dead letters out, and whether they fit together.

Knows Kafka (confluent_kafka), Avro (fastavro) and the published schemas; nothing of the product's code.
"""

from __future__ import annotations

import io
import json
import random
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import fastavro
from confluent_kafka import (
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from tests.waiting import wait_until

__all__ = [
    "EMAIL",
    "VERDICT",
    "Avro",
    "Expected",
    "Mailer",
    "Seen",
    "Watcher",
    "check",
    "lag",
    "make_topics",
    "members",
    "read_all",
]

SCHEMAS = Path(__file__).parents[2] / "schemas"
Place = tuple[str, int, int]
"""Topic, partition, offset."""
BAD_SUBJECTS = {"reject": "prepare", "explode": "run"}
"""Subjects that must end as dead letters -> the stage that refuses them."""


class Avro:
    """A schema file and its values in single-object encoding."""

    def __init__(self, file: Path) -> None:
        definition = json.loads(file.read_text(encoding="utf-8"))
        self._schema = fastavro.parse_schema(definition)
        canonical = fastavro.schema.to_parsing_canonical_form(definition)
        crc = fastavro.schema.fingerprint(canonical, "CRC-64-AVRO")
        self._prefix = b"\xc3\x01" + bytes.fromhex(crc)

    def encode(self, event: Mapping[str, Any]) -> bytes:
        stream = io.BytesIO()
        fastavro.schemaless_writer(stream, self._schema, dict(event))
        return self._prefix + stream.getvalue()

    def decode(self, value: bytes | None) -> dict[str, Any]:
        assert value is not None and value.startswith(self._prefix), f"not of this schema: {value!r}"
        stream = io.BytesIO(value[len(self._prefix) :])
        event = fastavro.schemaless_reader(stream, self._schema, None)
        assert not stream.read(), "bytes behind the value"
        assert isinstance(event, dict)
        return event


EMAIL, VERDICT = Avro(SCHEMAS / "email.avsc"), Avro(SCHEMAS / "spam_verdict.avsc")


def make_topics(servers: str, **partitions: int) -> None:
    """Topics with one replica: name=partitions; returns when all can be used."""
    admin = AdminClient({"bootstrap.servers": servers, "log_level": 2})
    for made in admin.create_topics(
        [NewTopic(name, count, 1) for name, count in partitions.items()]
    ).values():
        made.result(30)

    def usable() -> bool:
        found = admin.list_topics(timeout=10).topics
        return all(
            name in found
            and len(found[name].partitions) == count
            and all(p.leader >= 0 for p in found[name].partitions.values())
            for name, count in partitions.items()
        )

    wait_until(usable, 30, f"{partitions} are not there")


@dataclass(frozen=True, slots=True)
class Expected:
    """A record that must have one result, or one dead letter from the stage `dead`."""

    id: str
    key: bytes
    checksum: int
    dead: str = ""
    value: bytes | None = None
    """Kept for dead letters, which carry it untouched."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A record as a `read_committed` reader gets it."""

    place: Place
    key: bytes | None
    value: bytes | None
    headers: Mapping[str, bytes | None]


@dataclass(slots=True)
class Mailer:
    """Writes e-mails of mixed lengths under `keys` keys; a share of `broken` cannot be processed."""

    servers: str
    topic: str
    seed: int
    keys: int = 400
    broken: float = 0.02
    bad_subjects: Sequence[str] = tuple(BAD_SUBJECTS)
    """Subjects that the task at work refuses."""
    bodies: Sequence[str] = ()
    """Texts to choose from; without them a letter many times over."""
    expected: dict[Place, Expected] = field(default_factory=dict)
    _random: random.Random = field(init=False)
    _count: int = 0

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def send(self, count: int) -> None:
        """Write `count` mails; returns when the broker has them all."""
        producer = Producer(
            {"bootstrap.servers": self.servers, "enable.idempotence": True, "linger.ms": 5, "log_level": 2}
        )
        for mail in [self._mail() for _ in range(count)]:
            producer.produce(
                self.topic,
                value=mail.value,
                key=mail.key,
                headers={"mail": mail.id.encode()},
                on_delivery=self._noting(mail),
            )
            producer.poll(0)
        assert producer.flush(60) == 0, "the broker did not take the mails"

    def _noting(self, mail: Expected) -> Callable[[KafkaError | None, Message], None]:
        def note(error: KafkaError | None, message: Message) -> None:
            assert error is None, error
            place = (str(message.topic()), int(message.partition() or 0), int(message.offset() or 0))
            kept = mail if mail.dead else Expected(mail.id, mail.key, mail.checksum)
            self.expected[place] = kept

        return note

    def _mail(self) -> Expected:
        chance = self._random
        key = f"user{chance.randrange(self.keys)}"
        name = f"{self._count}-{key}"
        self._count += 1
        letters = chance.choice("abcdefgh") * int(20 * 2 ** chance.uniform(0, 6))
        body = chance.choice(self.bodies) if self.bodies else letters
        refused = bool(self.bad_subjects) and chance.random() < self.broken / 2
        subject = chance.choice(self.bad_subjects) if refused else "good"
        value: bytes | None = EMAIL.encode(
            {"id": name, "received_at": int(time.time() * 1000), "from": None, "to": ["you@example.com"]}
            | {"subject": subject, "body": body, "html": None, "headers": {}}
        )
        dead = BAD_SUBJECTS.get(subject, "")
        if not dead and chance.random() < self.broken / 2:
            value, dead = self._break(value or b""), "decode"
        return Expected(name, key.encode(), zlib.crc32(body.encode()) % 1024, dead, value)

    def _break(self, good: bytes) -> bytes | None:
        chance = self._random
        ways: list[bytes | None] = [
            None,
            b"",
            b"\xff" + chance.randbytes(chance.randint(0, 300)),
            good[: chance.randrange(len(good))],
            good + chance.randbytes(chance.randint(1, 9)),
            b"\xc3\x01" + chance.randbytes(8) + good[10:],
        ]
        return chance.choice(ways)


def read_all(servers: str, topic: str, *, timeout_s: float = 60.0) -> list[Seen]:
    """Everything committed in `topic`, once no transaction is open in it."""
    conf = {"bootstrap.servers": servers, "group.id": "oracle", "enable.auto.commit": False, "log_level": 2}
    committed = Consumer(conf | {"isolation.level": "read_committed", "enable.partition.eof": True})
    written = Consumer(conf | {"isolation.level": "read_uncommitted"})
    try:
        partitions = [
            TopicPartition(topic, p, 0) for p in committed.list_topics(topic, 10).topics[topic].partitions
        ]

        def settled() -> bool:
            return all(
                committed.get_watermark_offsets(p, 10)[1] == written.get_watermark_offsets(p, 10)[1]
                for p in partitions
            )

        wait_until(settled, timeout_s, f"a transaction on {topic} stays open")
        committed.assign(partitions)
        seen: list[Seen] = []
        ended: set[int | None] = set()
        deadline = time.monotonic() + timeout_s
        while len(ended) < len(partitions):
            assert time.monotonic() < deadline, f"{topic} has no end"
            for message in committed.consume(1000, 0.2):
                if (error := message.error()) is None:
                    seen.append(_seen(message))
                elif error.code() == KafkaError._PARTITION_EOF:
                    ended.add(message.partition())
                else:
                    raise KafkaException(error)
        return seen
    finally:
        committed.close()
        written.close()


def _seen(message: Message) -> Seen:
    place = (str(message.topic()), int(message.partition() or 0), int(message.offset() or 0))
    headers: Iterable[tuple[str, Any]] = message.headers() or []  # type: ignore[assignment]
    return Seen(place, message.key(), message.value(), dict(headers))


class Watcher:
    """Counts what becomes visible in `topics`, on a thread of its own, for tests that wait for progress."""

    def __init__(self, servers: str, topics: Sequence[str]) -> None:
        self._consumer = Consumer(
            {
                "bootstrap.servers": servers,
                "group.id": "watcher",
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "auto.offset.reset": "earliest",
                "reconnect.backoff.max.ms": 200,
                "fetch.wait.max.ms": 50,
                "log_level": 2,
            }
        )
        found = self._consumer.list_topics(timeout=10).topics
        self._consumer.assign([TopicPartition(t, p, 0) for t in topics for p in found[t].partitions])
        self.counts: Counter[str] = Counter()
        self.latest = 0.0
        """When something became visible last (monotonic)."""
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watcher", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        self._thread.join(10)
        self._consumer.close()

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def _watch(self) -> None:
        while not self._ending.is_set():
            for message in self._consumer.consume(1000, 0.05):
                if message.error() is None:
                    self.counts[str(message.topic())] += 1
                    self.latest = time.monotonic()


def lag(servers: str, group: str, topic: str) -> int:
    """Records (transaction markers included) between the group's stable committed offsets and the ends of `topic`."""
    reader = Consumer(
        {
            "bootstrap.servers": servers,
            "group.id": "lag",
            "isolation.level": "read_uncommitted",
            "log_level": 2,
        }
    )
    try:
        partitions = [
            TopicPartition(topic, p) for p in reader.list_topics(topic, 10).topics[topic].partitions
        ]
        ends = {p.partition: reader.get_watermark_offsets(p, 10)[1] for p in partitions}
    finally:
        reader.close()
    outsider = Consumer({"bootstrap.servers": servers, "group.id": group, "log_level": 2})  # read_committed
    try:
        answer = outsider.committed(partitions, timeout=5)
    except KafkaException:
        return sum(ends.values())  # an open transaction: nothing is settled
    finally:
        outsider.close()
    found = {p.partition: p.offset for p in answer if p.error is None}
    return sum(end - max(0, found.get(partition, 0)) for partition, end in ends.items())


def members(servers: str, group: str) -> dict[str, frozenset[tuple[str, int]]]:
    """Member id -> its partitions, as the group coordinator has it."""
    admin = AdminClient({"bootstrap.servers": servers, "log_level": 2})
    described = admin.describe_consumer_groups([group], request_timeout=10)[group].result()
    return {
        m.member_id: frozenset((p.topic, p.partition) for p in m.assignment.topic_partitions)
        for m in described.members
    }


def check(
    expected: Mapping[Place, Expected],
    results: Sequence[Seen],
    dead: Sequence[Seen],
    *,
    schema: Avro = VERDICT,
    content: Callable[[dict[str, Any], Expected], bool] = lambda event, expected: (
        event["probability"] == expected.checksum / 1024
    ),
) -> None:
    """Each expected record has exactly one result or dead letter, from the right place, with its content, in order."""
    wrong: list[str] = []
    origins: list[tuple[Place, Seen]] = []
    for seen in results:
        event = schema.decode(seen.value)
        origin = (event["source_topic"], event["source_partition"], event["source_offset"])
        origins.append((origin, seen))
        mail = expected.get(origin)
        if mail is None or mail.dead:
            wrong.append(f"a result that should not be, {origin}: {event}")
        elif event["event_id"] != mail.id or seen.key != mail.key or not content(event, mail):
            wrong.append(f"a result of another mail, {origin}: {event} for {mail}")
    letters: list[tuple[Place, Seen]] = []
    for seen in dead:
        origin = _origin(seen)
        letters.append((origin, seen))
        mail = expected.get(origin)
        if mail is None or not mail.dead:
            wrong.append(f"a dead letter that should not be, {origin}: {seen}")
        elif seen.headers["dead_letter.stage"] != mail.dead.encode():
            wrong.append(f"a dead letter of another stage, {origin}: {seen.headers} for {mail}")
        elif (seen.key, seen.value, seen.headers.get("mail")) != (mail.key, mail.value, mail.id.encode()):
            wrong.append(f"a dead letter that is not the original, {origin}: {seen} for {mail}")
    times = Counter(origin for origin, _ in [*origins, *letters])
    twice = [f"{origin} {expected.get(origin)} came {n} times" for origin, n in times.items() if n > 1]
    missing = [f"{origin} {mail} is missing" for origin, mail in expected.items() if origin not in times]
    order = [*_out_of_order(origins), *_out_of_order(letters)]
    problems = [*wrong, *twice, *missing, *order]
    assert not problems, (
        f"{len(twice)} twice, {len(missing)} missing, {len(wrong)} wrong, {len(order)} out of order of "
        f"{len(expected)}:\n" + "\n".join([*twice[:10], *missing[:10], *wrong[:10], *order[:10]])
    )


def _origin(seen: Seen) -> Place:
    topic, partition, offset = (
        (seen.headers[f"dead_letter.{name}"] or b"").decode() for name in ("topic", "partition", "offset")
    )
    return topic, int(partition), int(offset)


def _out_of_order(pairs: Iterable[tuple[Place, Seen]]) -> list[str]:
    """Per key: always the same partition, and offsets ascend with the offsets of their origin."""
    problems = []
    last: dict[bytes | None, tuple[Place, Seen]] = {}
    for origin, seen in sorted(pairs, key=lambda pair: pair[1].place):
        before = last.get(seen.key)
        if before is not None and (before[1].place[:2] != seen.place[:2] or before[0] >= origin):
            problems.append(
                f"key {seen.key!r}: {origin} at {seen.place} after {before[0]} at {before[1].place}"
            )
        last[seen.key] = (origin, seen)
    return problems
