"""Events into Kafka and what becomes of them, entered into the books: the threads of a demo.

feed ─► send ─► events ─► workers ─► results, dead letters ─► read ─► books
                             └─ committed offsets ─► follow ──────────┘
"""

from __future__ import annotations

import itertools
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)

from consumer.codec import Decoder, Encoder, load_schema
from consumer.errors import BadRecord, Fatal
from consumer.local import says
from consumer.local.broken import broken_records
from consumer.local.feeds import Feed, Offer
from consumer.local.ledger import Due, Line, Sent
from consumer.local.stage import PARTITIONS, Running
from consumer.records import Event

__all__ = ["Sender", "follow", "goal", "read"]

_ID = "demo.event_id"
"""Header that names the event: of a record that cannot be read, nothing else does, and dead letters keep it."""
_REASON = "dead_letter.reason"
_ORIGIN = ("dead_letter.topic", "dead_letter.partition", "dead_letter.offset")
_FOLLOW_S = 0.3

_Record = tuple[str, Offer, Due | None, bytes | None]
"""Id, event, what must become of it where that is not for the task to say, value."""


def goal(feed: Feed, events: int) -> int:
    """So many events of this feed belong to `events` e-mails."""
    return max(2, round(events * feed.share))


@dataclass(slots=True)
class Sender:
    """Sends one feed, some of it broken, no faster than its pace and than results come back."""

    servers: str
    topic: str
    feed: Feed
    goal: int | None
    readers: Sequence[Running]
    """The tasks that read it."""
    _ready: Iterator[_Record] = field(default_factory=lambda: iter(()))

    def load(self) -> None:
        """Read what the feed is made of, which takes seconds."""
        records = self._records()
        self._ready = itertools.chain([next(records)], records)

    def run(self, stopping: threading.Event, quit: threading.Event) -> None:
        """Send, after `load`, until the goal or until one of the two is set."""
        producer = Producer(
            {"bootstrap.servers": self.servers, "linger.ms": 1, "compression.type": "lz4", "log_level": 0}
        )
        due_s = time.monotonic()
        for event_id, offer, due, value in itertools.islice(self._ready, self.goal):
            while not (stopping.is_set() or quit.is_set()) and self._must_wait(due_s):
                producer.poll(0.005)
            if stopping.is_set() or quit.is_set():
                break
            due_s = max(due_s, time.monotonic() - 1.0) + 1 / self.feed.per_s
            self._enter(event_id, offer, due)
            producer.produce(
                self.topic,
                key=str(offer.event[self.feed.key]).encode(),
                value=value,
                headers=[(_ID, event_id.encode())],
                on_delivery=self._placed(event_id),
            )
            producer.poll(0)
        if producer.flush(30):
            raise Fatal(f"Kafka at {self.servers} does not take the demo's events")

    def _must_wait(self, due_s: float) -> bool:
        most = max(one.ledger.open for one in self.readers)
        return time.monotonic() < due_s or most >= self.feed.under_way

    def _enter(self, event_id: str, offer: Offer, due: Due | None) -> None:
        now_s = time.monotonic()
        for one in self.readers:
            becomes = due or one.part.due(offer.event)
            one.ledger.send(event_id, Sent(now_s, becomes, offer.what, offer.truth))

    def _placed(self, event_id: str) -> Callable[[KafkaError | None, Message], None]:
        def delivered(error: KafkaError | None, message: Message) -> None:
            if error is None:
                for one in self.readers:
                    one.ledger.placed(event_id, (self.topic, message.partition() or 0), message.offset() or 0)

        return delivered

    def _records(self) -> Iterator[_Record]:
        encode = Encoder(load_schema(self.feed.schema)).encode_many
        every = min(self.feed.broken_every, self.goal or self.feed.broken_every)
        spoiled: Iterator[bytes | None] | None = None
        for number, offer in enumerate(self.feed.offers()):
            (value,) = encode([offer.event])
            if isinstance(value, BadRecord):
                raise Fatal(f"the demo's own event does not fit the schema {self.feed.schema}: {value}")
            event_id = str(offer.event["id"])
            if number % every != every - 1:
                yield event_id, offer, None, value
                continue
            spoiled = spoiled or self._spoiled(offer.event, value)
            yield f"{event_id}-broken", offer, Due.DEAD_LETTER, next(spoiled)

    def _spoiled(self, event: Event, good: bytes) -> Iterator[bytes | None]:
        """Values that no task accepts: events that only look like some, and bytes that do not even."""
        made = Encoder(load_schema(self.feed.schema)).encode_many(list(self.feed.spoiled(event)))
        bad_events = itertools.cycle([value for value in made if isinstance(value, bytes)])
        for _, bad_record in broken_records(good):
            if made:
                yield next(bad_events)
            yield bad_record


def read(servers: str, running: Sequence[Running], quit: threading.Event) -> None:
    """Enter what becomes visible into the books, until `quit`."""
    consumer = Consumer(
        {
            "bootstrap.servers": servers,
            "group.id": f"demo-reader-{uuid.uuid4().hex[:8]}",
            "isolation.level": "read_committed",
            "fetch.wait.max.ms": 100,
            "log_level": 0,
            "enable.auto.commit": False,
        }
    )
    topics = {topic: one for one in running for topic in one.outputs}
    consumer.assign([TopicPartition(t, p, OFFSET_BEGINNING) for t in topics for p in range(PARTITIONS)])
    decoders = {one.name: Decoder(load_schema(one.task.result)) for one in running}
    while not quit.is_set():
        record = consumer.poll(0.1)
        if record is None or record.error():
            continue
        one = topics[str(record.topic())]
        if record.topic() == one.settings.dead_letter_topic:
            _enter_dead(one, record)
            continue
        (result,) = decoders[one.name].decode_many([record.value()])
        if isinstance(result, BadRecord):
            raise Fatal(f"a result of task {one.name} cannot be read: {result}")
        _enter_result(one, result)
        _enter_as_event(record, [other for other in running if record.topic() in other.settings.input_topics])
    consumer.close()


def _enter_result(one: Running, result: Event) -> None:
    name = str(result["event_id"])
    if one.part.reads:
        name = _known(one, result["source_topic"], result["source_partition"], result["source_offset"])
    sent, line = one.ledger.sent.get(name), None
    if sent is not None:
        text = one.part.say(result, sent.what)
        right = None
        if one.part.true is not None and sent.truth is not None:
            right = one.part.true(result) is sent.truth
        line = None if text is None else Line(text, right, one.part.telling(result))
    one.ledger.result(name, line, time.monotonic())
    if one.part.depicts:
        kind, score = says.finest(result)
        one.finest[kind] = max(one.finest.get(kind, (-1.0, "")), (score, str(result["event_id"])))


def _enter_dead(one: Running, record: Message) -> None:
    headers = {name: _text(value) for name, value in dict(record.headers() or []).items()}
    name = headers.get(_ID, "")
    if one.part.reads:
        topic, partition, offset = (headers[each] for each in _ORIGIN)
        name = _known(one, topic, int(partition), int(offset))
    one.ledger.dead(name, headers.get(_REASON, "unknown"), time.monotonic())


def _enter_as_event(record: Message, readers: Sequence[Running]) -> None:
    """A result is an event for the tasks that read results."""
    for one in readers:
        _known(one, str(record.topic()), record.partition() or 0, record.offset() or 0)


def _known(one: Running, topic: str, partition: int, offset: int) -> str:
    """The name of an event that is a result itself, in the books now: what it became may be seen before it is."""
    name = f"{topic}/{partition}/{offset}"
    if name not in one.ledger.sent:
        one.ledger.send(name, Sent(time.monotonic(), Due.MAYBE))
        one.ledger.placed(name, (topic, partition), offset)
    return name


def follow(servers: str, running: Sequence[Running], quit: threading.Event) -> None:
    """Settle events that may end in nothing by the groups' committed offsets, until `quit`."""
    outsiders = {
        one.name: Consumer(
            {"bootstrap.servers": servers, "group.id": one.settings.group_id, "log_level": 0}
        )  # never joins
        for one in running
    }
    while not quit.wait(_FOLLOW_S):
        for one in running:
            places = [place for place, queue in list(one.ledger.waiting.items()) if queue]
            if not places:
                continue
            try:
                asked = [TopicPartition(*place) for place in places]
                found = outsiders[one.name].committed(asked, timeout=10)
            except KafkaException:
                continue  # no coordinator at this moment
            for each in found:
                one.ledger.reached((each.topic, each.partition), each.offset)
    for outsider in outsiders.values():
        outsider.close()


def _text(value: str | bytes | None) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value or ""
