"""The consuming half of Kafka: a group member that hands out chunks.  Loop thread only.

    poll ──► [first record] ──consume──► the rest that is already here ──► Chunk
      └─ rebalance callbacks run in here: assigned, revoked, lost

A partition has an *epoch*, a number that changes with every assignment.  Each chunk carries the epochs of its
partitions, so that work on a partition that went away and came back is recognised as old.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from confluent_kafka import Consumer, KafkaError, KafkaException, Message
from confluent_kafka import TopicPartition as ClientPartition

from consumer.errors import Fatal, Retry
from consumer.records import Chunk, Grant, Offsets, Record, TopicPartition

__all__ = ["Source"]

log = logging.getLogger(__name__)

_CROWDED_SHARE = 0.05
"""A chunk this full says that there is load: then waiting a moment fills the next one.  Else it would cost latency."""

Revoked = Callable[[frozenset[TopicPartition]], None]

_REFUSED = {
    KafkaError._AUTHENTICATION: "the broker refused the credentials: check sasl.* and security.protocol",
    KafkaError.SASL_AUTHENTICATION_FAILED: "the broker refused the credentials: check sasl.* and security.protocol",
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "this user may not read the topic: grant READ and DESCRIBE on it",
    KafkaError.GROUP_AUTHORIZATION_FAILED: "this user may not join the group: grant READ on the group",
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: "this user may not use the cluster: ask for the missing grant",
    KafkaError.FENCED_INSTANCE_ID: "another worker joined with the same instance_name: give each its own",
    KafkaError.INCONSISTENT_GROUP_PROTOCOL: "the group has members with another assignment strategy or protocol: "
    "stop them all before you change it, or use another group_id",
    KafkaError._SSL: "the TLS connection failed: check security.protocol and the ssl.* properties",
}


class Source:
    """A member of a consumer group.  `revoked` is called inside `poll`, before partitions go in good order.

    With `shut`, nothing is read of a newly assigned partition until `open_up` is called for it.  With `until`, nothing
    is read from these offsets on, and nothing of other partitions.
    """

    def __init__(
        self,
        conf: Mapping[str, Any],
        topics: Sequence[str],
        *,
        max_chunk_records: int,
        gather_ms: float,
        revoked: Revoked,
        shut: bool = False,
        until: Offsets | None = None,
        rebalanced: Callable[[str, int], None] = lambda kind, partitions: None,
    ) -> None:
        self._topics = list(topics)
        self._max_chunk_records = max_chunk_records
        self._gather_s = gather_ms / 1000
        self._revoked = revoked
        self._rebalanced = rebalanced
        self._begins_shut = shut
        self._until = until
        self._shut: set[TopicPartition] = set()
        self._epochs: dict[TopicPartition, int] = {}
        self._assignments = 0
        self._chunks = 0
        self._held = False
        self._crowded = False
        self._failure: Fatal | None = None
        self.member = ""
        """Our id in the group, as last asked for; empty while we are no member.  Any thread may look."""
        self.joined = False
        """Whether the group has answered with an assignment (which may be empty)."""
        try:
            self._consumer = Consumer(
                {**conf, "error_cb": self._on_error}, logger=logging.getLogger("consumer.librdkafka")
            )
        except KafkaException as error:
            raise Fatal(f"Kafka settings refused: {error.args[0].str()}") from error

    @property
    def epochs(self) -> Mapping[TopicPartition, int]:
        """The partitions that are ours now; a snapshot."""
        return dict(self._epochs)

    def join(self, deadline_s: float, stopping: Callable[[], bool] = lambda: False) -> None:
        """Wait for the broker and the topics, then join the group; waits no longer when `stopping` says so.

        Raises Fatal when a topic does not exist or access is refused, Retry when no broker answers until
        `time.monotonic()` passes `deadline_s`.
        """
        for topic in self._topics:
            self._find(topic, deadline_s, stopping)
        self._consumer.subscribe(
            self._topics, on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
        )

    def _find(self, topic: str, deadline_s: float, stopping: Callable[[], bool]) -> None:
        while not stopping():
            try:
                found = self._consumer.list_topics(topic, timeout=2.0).topics[topic]
            except KafkaException as error:
                self._raise_refused(error.args[0])
                self._consumer.poll(0)  # hear why
                if self._failure is not None:
                    raise self._failure from error
                if time.monotonic() > deadline_s:
                    raise Retry(
                        f"no broker answered: {error.args[0].str()}. Is Kafka running, and are bootstrap_servers and "
                        "security.protocol right?"
                    ) from error
                log.warning("no broker answers yet (%s), trying again", error.args[0].str())
                continue
            if found.error is None:
                return
            self._raise_refused(found.error)
            if found.error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise Fatal(
                    f"topic {topic!r} does not exist: create it (consumer topics create) or name another"
                )
            if time.monotonic() > deadline_s:
                raise Retry(f"topic {topic!r} is not available: {found.error.str()}")
            log.warning("topic %r is not available yet (%s), trying again", topic, found.error.str())

    def poll(self, timeout_s: float) -> Chunk | None:
        """Wait up to `timeout_s` for records; runs the rebalance callbacks.  None when there are none."""
        if self._held:
            self._consumer.pause(self._consumer.assignment())  # also what was assigned meanwhile
        entered = self._epochs
        first = self._consumer.poll(timeout_s)
        messages: list[Message] = []
        before = self._epochs
        if first is not None and not self._held:
            gather_s = self._gather_s if self._crowded else 0
            messages = [first, *self._consumer.consume(self._max_chunk_records - 1, gather_s)]
            self._crowded = len(messages) > self._max_chunk_records * _CROWDED_SHARE
        elif first is not None:
            messages = [first]  # was handed out while pausing took effect; it counts like any other
        if self._failure is not None:
            raise self._failure
        if self._until is not None:
            messages = self._before_end(messages, self._until)
        if self._shut:
            if self._epochs is not entered:
                self._consumer.pause([ClientPartition(*tp) for tp in self._shut])
            messages = self._without_shut(messages)
        if not messages:
            return None
        return self._chunk(messages, before)

    def _without_shut(self, messages: list[Message]) -> list[Message]:
        """Leave out, for later, what had come of shut partitions before they were paused."""
        kept: list[Message] = []
        back: dict[TopicPartition, int] = {}
        for message in messages:
            tp = (message.topic() or "", message.partition() or 0)
            if tp not in self._shut:
                kept.append(message)
            elif message.error() is None:
                back.setdefault(tp, message.offset() or 0)
        for (topic, partition), offset in back.items():
            self._consumer.seek(ClientPartition(topic, partition, offset))
        return kept

    def _before_end(self, messages: list[Message], until: Offsets) -> list[Message]:
        """Leave out what lies at or behind the end of its partition, and read no further there."""
        kept: list[Message] = []
        ended: set[TopicPartition] = set()
        for message in messages:
            tp = (message.topic() or "", message.partition() or 0)
            if message.error() is not None or (message.offset() or 0) < until.get(tp, 0):
                kept.append(message)
            else:
                ended.add(tp)
        if ended:
            self._consumer.pause([ClientPartition(*tp) for tp in ended if tp in self._epochs])
        return kept

    def open_up(self, partition: TopicPartition) -> None:
        """Read a partition that was shut."""
        self._shut.discard(partition)
        if not self._held:
            self._consumer.resume([ClientPartition(*partition)])

    def _chunk(self, messages: list[Message], before: Mapping[TopicPartition, int]) -> Chunk | None:
        # the client's messages are our records; its stubs only allow for error messages, which are out
        records = cast("list[Record]", [m for m in messages if m.error() is None])
        if len(records) < len(messages):
            for message in messages:
                self._on_error(message.error())
            if self._failure is not None:
                raise self._failure
        if self._epochs is not before:  # a rebalance in the middle of this very poll
            records = self._without_old(records, before)
        if not records:
            return None
        epochs = self._epochs
        next_offsets: dict[TopicPartition, int] = {}
        for record in reversed(records):
            partition = (record.topic(), record.partition())
            if partition not in next_offsets:
                next_offsets[partition] = record.offset() + 1
                if len(next_offsets) == len(epochs):
                    break
        self._chunks += 1
        return Chunk(
            number=self._chunks,
            records=records,
            next_offsets=next_offsets,
            epochs={tp: epochs[tp] for tp in next_offsets},
            nbytes=sum(map(len, messages)),
            received_ns=time.monotonic_ns(),
        )

    def _without_old(self, records: list[Record], before: Mapping[TopicPartition, int]) -> list[Record]:
        """Leave out what was read of partitions that went away, or went away and came back, during this poll."""
        came_back = [tp for tp, epoch in self._epochs.items() if before.get(tp, epoch) != epoch]
        if came_back:
            self._rewind(came_back)
        return [
            r for r in records if (tp := (r.topic(), r.partition())) in self._epochs and tp not in came_back
        ]

    def _rewind(self, partitions: Sequence[TopicPartition]) -> None:
        """Read on from the committed offsets: of these records we cannot tell which assignment they came from."""
        for found in self._consumer.committed([ClientPartition(*tp) for tp in partitions], timeout=10.0):
            if found.offset < 0:
                found.offset, _ = self._consumer.get_watermark_offsets(found, timeout=10.0)
            self._consumer.seek(found)

    def grant(self) -> Grant:
        """What is ours and the proof of it, of one moment.

        Without a member id there is no proof (None): the broker would take offsets under empty metadata unchecked, for
        it holds their sender for a producer that manages its partitions itself.
        """
        member = self._consumer.memberid()
        metadata = self._consumer.consumer_group_metadata()
        is_member = bool(member) and self._consumer.memberid() == member
        self.member = str(member) if is_member else ""
        return Grant(self._epochs, metadata if is_member else None)

    def hold(self) -> None:
        """Take no more records, but stay a member: `poll` goes on serving the group.

        Throws the prefetched records away (they are fetched again), so it is for stalls, not for every full queue.
        """
        if not self._held:
            self._held = True

    def release(self) -> None:
        """Take records again."""
        if self._held:
            self._held = False
            ours = self._consumer.assignment()
            self._consumer.resume([p for p in ours if (p.topic, p.partition) not in self._shut])

    def lag(self, finished: Mapping[TopicPartition, int]) -> dict[TopicPartition, int]:
        """Records between what is `finished` (next offsets) and the end of each partition, as last heard of."""
        lags = {}
        for topic, partition in self._epochs:
            _, high = self._consumer.get_watermark_offsets(ClientPartition(topic, partition), cached=True)
            done = finished.get((topic, partition))
            if high >= 0 and done is not None:
                lags[topic, partition] = max(0, high - done)
        return lags

    def close(self) -> None:
        """Leave the group; a member with an instance name keeps its partitions for its next start."""
        self._consumer.close()

    # Callbacks: inside `poll`, on the loop thread.  None of them assigns, so that the client does what its protocol
    # (cooperative or eager) asks for right after.

    def _on_assign(self, consumer: Consumer, partitions: list[ClientPartition]) -> None:
        self.joined = True
        consumer.resume(partitions)  # the client remembers for ever that one was paused when it went away
        epochs = dict(self._epochs)
        for partition in partitions:
            self._assignments += 1
            epochs[partition.topic, partition.partition] = self._assignments
        if self._begins_shut:
            self._shut |= {(p.topic, p.partition) for p in partitions}
        self._epochs = epochs
        log.info("assigned %s; %d partitions are ours", _names(partitions), len(epochs))
        self._rebalanced("assigned", len(partitions))

    def _on_revoke(self, consumer: Consumer, partitions: list[ClientPartition]) -> None:
        gone = frozenset((p.topic, p.partition) for p in partitions)
        if gone:
            self._revoked(gone)  # while they are still ours
        self._forget(gone)
        log.info("revoked %s; %d partitions are ours", _names(partitions), len(self._epochs))
        self._rebalanced("revoked", len(partitions))

    def _on_lost(self, consumer: Consumer, partitions: list[ClientPartition]) -> None:
        self._forget(frozenset((p.topic, p.partition) for p in partitions))
        log.warning(
            "lost %s: the group went on without us; its new owners redo what was unfinished",
            _names(partitions),
        )
        self._rebalanced("lost", len(partitions))

    def _forget(self, gone: frozenset[TopicPartition]) -> None:
        self._shut -= gone
        self._epochs = {tp: epoch for tp, epoch in self._epochs.items() if tp not in gone}

    def _on_error(self, error: KafkaError | None) -> None:
        if error is None:
            return
        try:
            self._raise_refused(error)
        except Fatal as failure:
            self._failure = failure  # raising here would be swallowed by the client
            return
        if error.fatal() or error.code() == KafkaError._FATAL:  # in the callback only its code says so
            fenced = "group.instance.id" in error.str()
            remedy = _REFUSED[KafkaError.FENCED_INSTANCE_ID] if fenced else "restart the worker"
            self._failure = Fatal(f"the Kafka client failed ({error.str()}): {remedy}")
        elif error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
            log.warning("%s; waiting for it (consumer topics create makes it)", error.str())
        else:
            log.warning("Kafka: %s", error.str())

    @staticmethod
    def _raise_refused(error: KafkaError) -> None:
        remedy = _REFUSED.get(error.code())
        if remedy is not None:
            raise Fatal(f"{remedy} ({error.str()})")


def _names(partitions: Sequence[ClientPartition]) -> str:
    return ", ".join(f"{p.topic}[{p.partition}]" for p in partitions) or "nothing"
