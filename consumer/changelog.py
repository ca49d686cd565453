"""Brings keyed state back from its changelog topic.  Loop thread only; never blocks for long.

    begin ─► [offsets stable?] ─► [end of the changelog] ─read to it─► step() says: restored
                  └ the group's, for this partition: a transaction of its last owner may still be open

A worker restores some partitions while it works on others, and stays a member of its group meanwhile.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    Message,
)
from confluent_kafka import TopicPartition as ClientPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]  # its stubs do not export it

from consumer.errors import Fatal
from consumer.records import TopicPartition

__all__ = ["Changelog", "Row"]

log = logging.getLogger(__name__)

Row = tuple[bytes, bytes | None, int]
"""Key, value (None: deleted), time in ms."""

_READ_RECORDS = 20_000
_SAY_EVERY_S = 2.0
_RETRY_S = 0.05
_CALL_S = 10.0
_OFFSETS_S = 1.0


@dataclass(slots=True)
class _Restoring:
    """One partition on its way.  `end` is the offset to read to, known once nobody can write any more."""

    source: TopicPartition
    asked: Future[Any] | None = None
    asks_for_end: bool = False
    ask_again_s: float = 0.0
    end: int | None = None
    rows: int = 0
    begun_s: float = 0.0


class Changelog:
    """Reads the state of partitions back.

    topics: input topic -> where its changes are.  `load` takes rows in, the oldest first.
    """

    def __init__(
        self,
        conf: Mapping[str, Any],
        group_id: str,
        topics: Mapping[str, str],
        load: Callable[[TopicPartition, Iterable[Row]], None],
    ) -> None:
        never_joins = {
            **conf,
            "group.id": group_id,
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
        }
        librdkafka = logging.getLogger("consumer.librdkafka")
        self._admin = AdminClient(dict(conf))
        self._asker = ThreadPoolExecutor(1, "changelog")
        self._group = Consumer(never_joins, logger=librdkafka)  # only that thread uses it
        self._consumer = Consumer(
            {
                **never_joins,
                "enable.partition.eof": True,
                "auto.offset.reset": "earliest",
                "fetch.queue.backoff.ms": 20,
                "queued.max.messages.kbytes": 16_384,
            },
            logger=librdkafka,
        )
        self._topics = topics
        self._load = load
        self._under_way: dict[TopicPartition, _Restoring] = {}  # by the changelog's partition
        self._said_s = 0.0

    @property
    def busy(self) -> bool:
        """Whether any partition is being restored."""
        return bool(self._under_way)

    def check(self) -> None:
        """Raises Fatal unless the changelog of every topic is there with a partition for each of the topic's."""
        try:
            known = self._consumer.list_topics(timeout=_CALL_S).topics
        except KafkaException as error:
            names = ", ".join(map(repr, self._topics.values()))
            raise Fatal(f"cannot look for topic {names}: {error.args[0].str()}") from error
        for topic, changes in self._topics.items():
            if changes not in known:
                raise Fatal(f"topic {changes!r} does not exist: create it (consumer topics create)")
            have = len(known[changes].partitions)
            wanted = len(known[topic].partitions) if topic in known else 0
            if have < wanted:
                raise Fatal(
                    f"topic {changes!r} has {have} partitions and {topic!r} has {wanted}: keyed state needs one "
                    f"for each; add them (kafka-topics --alter --topic {changes} --partitions {wanted})"
                )

    def begin(self, source: TopicPartition) -> None:
        """Restore the state of a partition from the beginning."""
        self.cancel(source)
        self._under_way[self._place(source)] = _Restoring(source, begun_s=time.monotonic())

    def cancel(self, source: TopicPartition) -> None:
        """The partition went away."""
        restoring = self._under_way.pop(self._place(source), None)
        if restoring is not None and restoring.end is not None:
            self._consumer.incremental_unassign([ClientPartition(*self._place(source))])

    def step(self, patience_s: float) -> list[TopicPartition]:
        """Go on for about `patience_s`; returns the partitions whose state is complete now."""
        restored = [each for each in self._under_way.values() if self._prepared(each)]
        if any(each.end is not None for each in self._under_way.values()):
            restored += self._read(patience_s)
        elif self._under_way and not restored:
            time.sleep(min(patience_s, 0.002))  # the answers come on other threads
        for each in restored:
            self.cancel(each.source)
            log.info(
                "restored %d changes of state of %s[%d] in %.1f s",
                each.rows,
                *each.source,
                time.monotonic() - each.begun_s,
            )
        return [each.source for each in restored]

    def close(self) -> None:
        self._asker.shutdown(cancel_futures=True)  # waits for _OFFSETS_S at most
        self._group.close()
        self._consumer.close()

    def _prepared(self, each: _Restoring) -> bool:
        """Take the next step towards reading a partition; True when there is nothing to read."""
        if each.end is not None:
            return False
        if each.asked is None:
            if time.monotonic() >= each.ask_again_s:
                each.asked = (
                    self._ask_for_end(each)
                    if each.asks_for_end
                    else self._asker.submit(self._wait_for_offset, each.source)
                )
            return False
        if not each.asked.done():
            return False
        asked, each.asked = each.asked, None
        try:
            answer = asked.result()
        except KafkaException as error:
            log.debug("state of %s[%d] has to wait: %s", *each.source, error.args[0].str())
            each.ask_again_s = time.monotonic() + _RETRY_S
            return False
        if not each.asks_for_end:
            each.asks_for_end = True
            return False
        each.end = answer.offset
        self._consumer.incremental_assign([ClientPartition(*self._place(each.source), OFFSET_BEGINNING)])
        return False

    def _place(self, source: TopicPartition) -> TopicPartition:
        """Where the changes of a partition are."""
        return self._topics[source[0]], source[1]

    def _wait_for_offset(self, source: TopicPartition) -> None:
        """On the thread `changelog`: returns once no transaction is open on the group's offset of the partition."""
        (place,) = self._group.committed([ClientPartition(*source)], timeout=_OFFSETS_S)
        if place.error is not None:
            raise KafkaException(place.error)

    def _ask_for_end(self, each: _Restoring) -> Future[Any]:
        """The offset behind everything that was written, committed or not."""
        place = ClientPartition(*self._place(each.source))
        replies = self._admin.list_offsets(
            {place: OffsetSpec.latest()},  # type: ignore[no-untyped-call]
            isolation_level=IsolationLevel.READ_UNCOMMITTED,
            request_timeout=_CALL_S,
        )
        return replies[place]

    def _read(self, patience_s: float) -> list[_Restoring]:
        rows: dict[TopicPartition, list[Row]] = {}
        restored = []
        for message in self._consumer.consume(_READ_RECORDS, patience_s):
            place, error = (message.topic() or "", message.partition() or 0), message.error()
            each = self._under_way.get(place)
            if each is None:
                continue
            if error is None:
                rows.setdefault(place, []).append(_row(message))
            elif error.code() == KafkaError._PARTITION_EOF:
                if each.end is not None and (message.offset() or 0) >= each.end:
                    restored.append(each)
            else:
                log.warning("reading the state of %s[%d]: %s", *each.source, error.str())
        for place, found in rows.items():
            each = self._under_way[place]
            each.rows += len(found)
            self._load(each.source, found)
        self._say()
        return restored

    def _say(self) -> None:
        now = time.monotonic()
        if now - self._said_s >= _SAY_EVERY_S:
            self._said_s = now
            for each in self._under_way.values():
                if each.rows:
                    log.info("restoring state of %s[%d]: %d changes so far", *each.source, each.rows)


def _row(message: Message) -> Row:
    return message.key() or b"", message.value(), message.timestamp()[1]
