"""Tables: compacted topics that every worker holds whole.  One thread reads them; everybody may look.

start ─► [read to the end of every partition] ─► whole ─► read on: rows are replaced one at a time
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message
from confluent_kafka import TopicPartition as ClientPartition

from consumer.errors import BadRecord, Fatal, Retry
from consumer.records import Event

__all__ = ["Tables"]

log = logging.getLogger(__name__)

Decode = Callable[[Sequence[bytes | None]], Sequence[Event | BadRecord]]

_READ_RECORDS = 10_000
_WAIT_S = 0.2
_CALL_S = 10.0


class Tables:
    """`rows[table][key]` is the latest event under that key.  `topics` and `decoders` are by table name."""

    def __init__(
        self,
        conf: Mapping[str, Any],
        group_id: str,
        topics: Mapping[str, str],
        decoders: Mapping[str, Decode],
    ) -> None:
        self._consumer = Consumer(
            {
                **conf,
                "group.id": group_id,  # required, but this consumer never joins
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "isolation.level": "read_committed",
                "fetch.queue.backoff.ms": 20,
            },
            logger=logging.getLogger("consumer.librdkafka"),
        )
        self._topics = dict(topics)
        self._tables = {topic: name for name, topic in topics.items()}
        self._decoders = decoders
        self._whole = threading.Event()
        self._stopping = False
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._main, name="tables", daemon=True)
        self._rows: dict[str, dict[str, Event]] = {name: {} for name in topics}
        self.rows: Mapping[str, Mapping[str, Event]] = self._rows

    def start(self, deadline_s: float, stopping: Callable[[], bool] = lambda: False) -> None:
        """Returns when every table is whole, or `stopping` says so.

        Raises Fatal where a topic is missing, Retry where brokers do not answer until `deadline_s` (monotonic).
        """
        self._thread.start()
        while not self._whole.wait(0.05) and not stopping():
            if self._failure is not None:
                raise self._failure
            if time.monotonic() > deadline_s:
                raise Retry(f"the tables {', '.join(self._topics.values())} could not be read in time")
        for name, rows in self._rows.items():
            log.info("table %s has %d rows", name, len(rows))

    def stop(self, timeout_s: float) -> None:
        """End the thread."""
        self._stopping = True
        self._thread.join(timeout_s)

    # The thread.

    def _main(self) -> None:
        try:
            waiting = self._assign()
            if not waiting:
                self._whole.set()
            while not self._stopping:
                waiting -= self._read()
                if not waiting:
                    self._whole.set()
        except Exception as error:
            self._failure = error
            log.exception("the tables are read no more")
        finally:
            self._consumer.close()

    def _assign(self) -> set[tuple[str, int]]:
        places = []
        for topic in self._tables:
            partitions = self._partitions(topic)
            places += [ClientPartition(topic, number, OFFSET_BEGINNING) for number in range(partitions)]
        self._consumer.assign(places)
        return {(place.topic, place.partition) for place in places}

    def _partitions(self, topic: str) -> int:
        while not self._stopping:
            try:
                found = self._consumer.list_topics(topic, timeout=_CALL_S).topics[topic]
            except KafkaException as error:
                log.warning("no broker answers yet (%s), trying again", error.args[0].str())
                continue
            if found.error is None:
                return len(found.partitions)
            if found.error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise Fatal(
                    f"topic {topic!r}, a table of the task, does not exist: create it (consumer topics create)"
                )
            if not found.error.retriable():
                raise Fatal(f"topic {topic!r}, a table of the task, cannot be read: {found.error.str()}")
        return 0

    def _read(self) -> set[tuple[str, int]]:
        """Take in what has come; returns the partitions whose end was seen."""
        ended = set()
        news: dict[str, list[Message]] = {}
        for message in self._consumer.consume(_READ_RECORDS, _WAIT_S):
            error, topic = message.error(), message.topic() or ""
            if error is None:
                news.setdefault(topic, []).append(message)
            elif error.code() == KafkaError._PARTITION_EOF:
                ended.add((topic, message.partition() or 0))
            else:
                log.warning("reading the table %s: %s", topic, error.str())
        for topic, messages in news.items():
            self._take_in(self._tables[topic], messages)
        return ended

    def _take_in(self, name: str, messages: Sequence[Message]) -> None:
        rows = self._rows[name]
        for message, event in zip(
            messages, self._decoders[name]([message.value() for message in messages]), strict=True
        ):
            key = (message.key() or b"").decode("utf-8", "replace")
            if message.value() is None:
                rows.pop(key, None)
            elif isinstance(event, BadRecord):
                place = f"{message.topic()}[{message.partition()}] offset {message.offset()}"
                log.warning("row %r of table %s at %s is left as it was: %s", key, name, place, event)
            else:
                rows[key] = event
