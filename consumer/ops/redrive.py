"""Dead letters sent back to where their events came from, each once, however often that is begun and killed.

    dead letters ─► selected? ─► replayed already? ─► too often? ─► one transaction: event to its origin topic
                                        ▲                                          + row in the ledger
                                        └──────────── ledger: <dead letter topic>_replayed, compacted ◄┘

What has been sent back stands in the ledger, written in the same transaction as the event: progress of its own, by
letter, so that any selection can follow any other.  One replay at a time: a second one fences the first.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from consumer.config import Settings
from consumer.errors import Fatal, Retry
from consumer.local.topics import TopicSpec, describe_topics, ensure_topics
from consumer.ops.letters import REPLAYS, Letter, Place, Selection
from consumer.ops.scan import Progress, record_at, scan

__all__ = ["Report", "ledger_topic", "replay", "replayed"]

_CALL_S = 15.0
_PATIENCE_S = 60.0
_MAX_LETTERS = 500
_MAX_BYTES = 4 << 20
_SPACE = 200
_FENCED = {KafkaError._FENCED, KafkaError.PRODUCER_FENCED, KafkaError.INVALID_PRODUCER_EPOCH}


@dataclass(slots=True)
class Report:
    """What became of the letters that were looked at, by number and, where it matters, by place."""

    sent: int = 0
    already: int = 0
    looping: list[Place] = field(default_factory=list)
    """Sent back `max_replays` times and here again."""
    incomplete: list[Place] = field(default_factory=list)
    """A part was left out when it was written, and the origin no longer has the record."""
    homeless: list[Place] = field(default_factory=list)
    """It names no origin, or one that is no more."""
    refused: dict[Place, str] = field(default_factory=dict)
    """Its origin does not take it (any more); place -> Kafka's word."""

    @property
    def left(self) -> int:
        """How many of those that were meant stay behind."""
        return len(self.looping) + len(self.incomplete) + len(self.homeless) + len(self.refused)


def ledger_topic(dead_letter_topic: str) -> str:
    return f"{dead_letter_topic}_replayed"


def replayed(settings: Settings) -> dict[Place, int]:
    """Place of each letter that has been sent back -> when (ms since the epoch)."""
    topic = ledger_topic(settings.dead_letter_topic)
    if describe_topics(settings.admin_conf(), [topic])[topic] is None:
        return {}
    done: dict[Place, int] = {}
    for record in scan(settings.admin_conf(), topic):
        partition, _, offset = (record.key() or b"").decode("ascii", "replace").partition(":")
        if partition.isdigit() and offset.isdigit():
            done[int(partition), int(offset)] = int(json.loads(record.value() or b"{}").get("at_ms", 0))
    return done


def replay(
    settings: Settings,
    selection: Selection,
    *,
    max_replays: int,
    limit: int | None = None,
    dry_run: bool = False,
    progress: Progress = lambda done, total: None,
) -> Report:
    """Send the selected letters that were not sent back yet to their origin topics: key, value, headers, timestamp and
    partition as they came, and a header that counts.  `settings` are complete (`Settings.for_task`).

    `max_replays` guards against loops: what comes back more often stays.  `dry_run` only says what would happen.
    Raises Fatal when another replay took over, Retry when Kafka does not answer; begin it again then.
    """
    report = Report()
    sender = None if dry_run else _Sender(settings)  # first: ends what a killed replay had left open
    origins = _Origins(settings)
    waiting: list[Letter] = []
    nbytes = 0
    for letter in _meant(settings, selection, max_replays, limit, origins, report, progress):
        waiting.append(letter)
        nbytes += _size(letter)
        if len(waiting) >= _MAX_LETTERS or nbytes >= _MAX_BYTES:
            _send(sender, waiting, report)
            waiting, nbytes = [], 0
    _send(sender, waiting, report)
    return report


def _meant(
    settings: Settings,
    selection: Selection,
    max_replays: int,
    limit: int | None,
    origins: _Origins,
    report: Report,
    progress: Progress,
) -> Iterator[Letter]:
    """The letters to send, whole; why others stay goes into `report`."""
    done = replayed(settings)
    taken = 0
    for record in scan(settings.admin_conf(), settings.dead_letter_topic, progress=progress):
        letter = Letter.of(record)
        if not selection.takes(letter):
            continue
        if letter.place in done:
            report.already += 1
        elif letter.replays >= max_replays:
            report.looping.append(letter.place)
        elif not origins.exists(letter):
            report.homeless.append(letter.place)
        elif (whole := origins.completed(letter)) is None:
            report.incomplete.append(letter.place)
        elif limit is None or taken < limit:
            taken += 1
            yield whole


def _send(sender: _Sender | None, letters: Sequence[Letter], report: Report) -> None:
    refused = {} if sender is None or not letters else sender.send(letters)
    report.refused |= refused
    report.sent += len(letters) - len(refused)


def _size(letter: Letter) -> int:
    headers = sum(len(name) + len(value or b"") for name, value in letter.headers)
    return len(letter.key or b"") + len(letter.value or b"") + headers + _SPACE


class _Origins:
    """The topics that letters came from."""

    def __init__(self, settings: Settings) -> None:
        self._conf = settings.admin_conf()
        self._partitions: dict[str, int] = {}

    def exists(self, letter: Letter) -> bool:
        if letter.origin is None:
            return False
        (topic, partition), _ = letter.origin
        if topic not in self._partitions:
            state = describe_topics(self._conf, [topic])[topic]
            self._partitions[topic] = 0 if state is None else state.partitions
        return 0 <= partition < self._partitions[topic]

    def completed(self, letter: Letter) -> Letter | None:
        """`letter` with what was left out of it, read at its origin; None where that is gone."""
        if not letter.shortened or letter.origin is None:
            return letter
        (topic, partition), offset = letter.origin
        record = record_at(self._conf, topic, partition, offset)
        if record is None:
            return None
        try:
            headers = record.headers() or []
        except Exception:  # a name that is not UTF-8: the client can neither read nor write it
            return None
        return replace(letter, key=record.key(), value=record.value(), headers=headers)


class _Sender:
    """The transactional producer of replays.  Making one ends, one way or the other, what its predecessor began."""

    def __init__(self, settings: Settings) -> None:
        topic = settings.dead_letter_topic
        self._ledger = ledger_topic(topic)
        ensure_topics(settings.admin_conf(), [TopicSpec(self._ledger, 1, cleanup_policy="compact")])
        conf = settings.producer_conf(f"{topic}:replay")
        self._producer = Producer({**conf, "log_level": 0, "error_cb": lambda error: None})
        self._insist(lambda: self._producer.init_transactions(_CALL_S))

    def send(self, letters: Sequence[Letter]) -> dict[Place, str]:
        """All of them in one transaction, less those that their topic refuses: place -> why.

        A broker answers for a whole batch of records: when it refuses one, each is tried alone.
        """
        refused = self._transact(letters)
        if refused and len(letters) > 1:
            refused = {}
            for letter in letters:
                refused |= self._transact([letter])
        return refused

    def _transact(self, letters: Sequence[Letter]) -> dict[Place, str]:
        """Nothing is sent when anything is refused."""
        producer = self._producer
        refused: dict[Place, str] = {}
        at_ms = time.time_ns() // 1_000_000
        try:
            producer.begin_transaction()
            for letter in letters:
                self._produce(letter, at_ms, refused)
            producer.flush(_PATIENCE_S)
            if refused:
                self._insist(lambda: producer.abort_transaction(_CALL_S))
            else:
                self._insist(lambda: producer.commit_transaction(_CALL_S))
        except KafkaException as error:
            if error.args[0].code() in _FENCED:
                raise _taken_over() from error
            raise Retry(
                f"replaying stopped: {error.args[0].str()}. What was sent is in {self._ledger}: begin again, it goes "
                "on from there"
            ) from error
        return refused

    def _produce(self, letter: Letter, at_ms: int, refused: dict[Place, str]) -> None:
        assert letter.origin is not None
        (topic, partition), offset = letter.origin
        times = (REPLAYS, str(letter.replays + 1).encode())

        def delivered(error: KafkaError | None, _: Message) -> None:
            if error is not None and error.code() not in (
                KafkaError._PURGE_QUEUE,
                KafkaError._PURGE_INFLIGHT,
            ):
                refused[letter.place] = error.str()

        event: dict[str, Any] = {
            "key": letter.key,
            "value": letter.value,
            "headers": [*letter.headers, times],
            "partition": partition,
            "on_delivery": delivered,
        }
        if letter.timestamp_ms:
            event["timestamp"] = letter.timestamp_ms
        row = {"at_ms": at_ms, "topic": topic, "partition": partition, "offset": offset}
        place = "{}:{}".format(*letter.place)
        try:
            self._producer.produce(topic, **event)
        except KafkaException as error:
            refused[letter.place] = error.args[0].str()
            return
        self._producer.produce(self._ledger, key=place, value=json.dumps(row))
        self._producer.poll(0)

    def _insist(self, call: Callable[[], object]) -> None:
        """Repeat what may be repeated, for `_PATIENCE_S`."""
        deadline_s = time.monotonic() + _PATIENCE_S
        while True:
            try:
                call()
                return
            except KafkaException as error:
                reason = error.args[0]
                if reason.code() in _FENCED:
                    raise _taken_over() from error
                if not reason.retriable() or time.monotonic() > deadline_s:
                    raise


def _taken_over() -> Fatal:
    return Fatal(
        "another replay of these dead letters has begun and took over; what this one sent is committed"
    )


def totals(report: Report) -> Mapping[str, int]:
    """`report` in numbers."""
    return {
        "sent": report.sent,
        "already_replayed": report.already,
        "looping": len(report.looping),
        "incomplete": len(report.incomplete),
        "homeless": len(report.homeless),
        "refused": len(report.refused),
    }
