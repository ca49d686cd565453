"""The transactional producer: one transaction at a time, and what to do about each way in which it can end.

    RetryTransaction        aborted: send the same again
    ├── MembershipStale     ... under a fresh grant
    └── TooLarge            ... without this record
    OutcomeUnknown          `replace`, then ask `committed` what became of it

Sink thread only.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from confluent_kafka import ConsumerGroupTopicPartitions, KafkaError, KafkaException, Message, Producer
from confluent_kafka import TopicPartition as ClientPartition
from confluent_kafka.admin import AdminClient

from consumer.errors import Fatal, Retry
from consumer.records import Finished, TopicPartition

__all__ = ["MembershipStale", "OutcomeUnknown", "RetryTransaction", "TooLarge", "TransactionalProducer"]

log = logging.getLogger(__name__)

_CALL_S = 15.0
_STALE_MEMBERSHIP = {
    KafkaError.ILLEGAL_GENERATION,
    KafkaError.UNKNOWN_MEMBER_ID,
    KafkaError.REBALANCE_IN_PROGRESS,
    KafkaError.FENCED_INSTANCE_ID,
    KafkaError._ASSIGNMENT_LOST,
}
_FENCED = {KafkaError._FENCED, KafkaError.PRODUCER_FENCED, KafkaError.INVALID_PRODUCER_EPOCH}
_NO_TOPIC = "a topic to write to does not exist: create it (consumer topics create)"
_REFUSED = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "this user may not write to a topic: grant WRITE and DESCRIBE on it",
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED: "this user may not use transactions: grant WRITE and "
    "DESCRIBE on the transactional id",
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: "this user may not write idempotently: grant IDEMPOTENT_WRITE on "
    "the cluster",
    KafkaError.GROUP_AUTHORIZATION_FAILED: "this user may not commit offsets: grant READ on the group",
    KafkaError.UNKNOWN_TOPIC_OR_PART: _NO_TOPIC,
    KafkaError._UNKNOWN_TOPIC: _NO_TOPIC,
    KafkaError._UNKNOWN_PARTITION: _NO_TOPIC,
    KafkaError._AUTHENTICATION: "the broker refused the credentials: check sasl.* and security.protocol",
    KafkaError.INVALID_TRANSACTION_TIMEOUT: "transaction_timeout_ms is above the broker's "
    "transaction.max.timeout.ms",
}


class RetryTransaction(Retry):
    """The transaction is aborted; nothing of it is visible.  `reason` is a word for metrics."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class MembershipStale(RetryTransaction):
    """The group has moved on since the grant was made."""


class TooLarge(RetryTransaction):
    """A topic refused a record for its size; of several that were refused this is the largest."""

    def __init__(self, topic: str, nbytes: int) -> None:
        super().__init__("too_large", f"topic {topic!r} refused a record of {nbytes} bytes for its size")
        self.topic = topic
        self.nbytes = nbytes


class OutcomeUnknown(Retry):
    """It may be committed or not, and this producer cannot go on.  `fenced`: another one has taken its id over."""

    def __init__(self, reason: str, detail: str, *, fenced: bool) -> None:
        super().__init__(detail)
        self.reason = reason
        self.fenced = fenced


class TransactionalProducer:
    """Publishes and commits.  `give_up` is asked between attempts while no coordinator answers."""

    def __init__(
        self,
        conf: Mapping[str, Any],
        admin_conf: Mapping[str, Any],
        group_id: str,
        give_up: Callable[[], bool],
    ) -> None:
        self._conf = {**conf, "error_cb": self._on_error}
        self._admin_conf = dict(admin_conf)
        self._group_id = group_id
        self._give_up = give_up
        self._refused: list[tuple[str, int]] = []
        self._producer = self._connect()

    @property
    def transactional_id(self) -> str:
        return str(self._conf.get("transactional.id"))

    def commit(self, pending: Sequence[Finished], metadata: Any) -> None:
        """Publish everything in `pending` together with its offsets: one transaction, visible when this returns.

        Raises RetryTransaction, OutcomeUnknown, or Fatal for what no retry can mend.
        """
        producer = self._producer
        self._refused.clear()
        offsets: dict[TopicPartition, int] = {}
        for finished in pending:
            offsets.update(finished.next_offsets)
        positions = [ClientPartition(topic, partition, at) for (topic, partition), at in offsets.items()]
        try:
            producer.begin_transaction()
            for finished in pending:
                self._publish(finished)
            if self._refused:
                raise KafkaException(KafkaError(KafkaError.MSG_SIZE_TOO_LARGE))
            self._insist(lambda: producer.send_offsets_to_transaction(positions, metadata, _CALL_S))
            self._insist(producer.commit_transaction)
        except KafkaException as error:
            raise self._sorted(error.args[0]) from error

    def replace(self) -> None:
        """A new producer with the same id: taking the id over settles whatever the old one left open."""
        self.close()
        self._producer = self._connect()

    def committed(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """The group's committed offsets, once no transaction is open on them; negative where there is none."""
        request = ConsumerGroupTopicPartitions(self._group_id, [ClientPartition(*tp) for tp in partitions])
        while True:
            try:
                admin = AdminClient(self._admin_conf)
                answer = admin.list_consumer_group_offsets(
                    [request], require_stable=True, request_timeout=_CALL_S
                )
                found = answer[self._group_id].result().topic_partitions
                if failed := next((p.error for p in found if p.error is not None), None):
                    raise KafkaException(failed)
                return {(p.topic, p.partition): p.offset for p in found}
            except KafkaException as error:
                _raise_refused(error.args[0])
                if self._give_up():
                    raise Retry(f"committed offsets are not readable: {error.args[0].str()}") from error
                log.warning("committed offsets are not readable yet (%s), trying again", error.args[0].str())
                time.sleep(0.1)

    def close(self) -> None:
        """Throw away what is left in the client's queues: it belongs to a transaction that is over."""
        self._producer.purge()

    # One transaction.

    def _publish(self, finished: Finished) -> None:
        if finished.headers is None:
            self._publish_plain(finished)
        else:
            for value, source, headers in zip(
                finished.values, finished.sources, finished.headers, strict=True
            ):
                self._publish_one(finished.topic, source.key(), value, headers, 0)
        for letter in finished.dead:
            self._publish_one(letter.topic, letter.key, letter.value, letter.headers, letter.timestamp_ms)

    def _publish_plain(self, finished: Finished) -> None:
        rows: list[dict[str, Any]] = [
            {"value": value, "key": source.key()}
            for value, source in zip(finished.values, finished.sources, strict=True)
        ]
        while rows and self._producer.produce_batch(
            finished.topic, rows, on_delivery=self._on_delivery
        ) < len(rows):
            rows = self._left_over(finished.topic, rows)

    def _left_over(self, topic: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Rows that the client did not take: those too large are noted, the rest waits for room in its queue."""
        again = []
        for row in rows:
            error = row.pop("_error", None)
            if error is None:
                continue
            if error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
                self._refused.append((topic, len(row["value"])))
            elif error.code() == KafkaError._QUEUE_FULL:
                again.append(row)
            else:
                raise KafkaException(error)
        if again:
            self._producer.poll(0.05)
        return again

    def _publish_one(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Any, timestamp_ms: int
    ) -> None:
        while True:
            try:
                self._producer.produce(
                    topic,
                    value=value,
                    key=key,
                    headers=headers,
                    timestamp=timestamp_ms,
                    on_delivery=self._on_delivery,
                )
                return
            except BufferError:
                self._producer.poll(0.05)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.MSG_SIZE_TOO_LARGE:
                    raise
                # this error does not fail the transaction: unnoticed, the record would be missing for ever
                self._refused.append((topic, len(value or b"")))
                return

    def _insist(self, call: Callable[[], object]) -> None:
        """Repeat a transactional call while the client says that it may be repeated."""
        while True:
            try:
                call()
                return
            except KafkaException as error:
                if not error.args[0].retriable():
                    raise
                log.warning("Kafka is slow to answer (%s), trying again", error.args[0].str())

    def _sorted(self, error: KafkaError) -> Retry:
        """What the failure of a transaction means; aborts it where that is possible."""
        _raise_refused(error)
        reason, refused = error.name(), list(self._refused)
        if error.fatal() or not self._abort():
            return OutcomeUnknown(reason, error.str(), fenced=error.code() in _FENCED)
        if refused:
            topic, nbytes = max(refused, key=lambda item: item[1])
            return TooLarge(topic, nbytes)
        if error.code() in _STALE_MEMBERSHIP:
            return MembershipStale(reason, error.str())
        return RetryTransaction(reason, error.str())

    def _abort(self) -> bool:
        """Whether the transaction is known to be aborted."""
        try:
            self._insist(self._producer.abort_transaction)
            return True
        except KafkaException as error:
            log.warning("the transaction could not be aborted (%s)", error.args[0].str())
            return False

    def _connect(self) -> Producer:
        try:
            producer = Producer(self._conf, logger=logging.getLogger("consumer.librdkafka"))
        except KafkaException as error:
            raise Fatal(f"Kafka settings refused: {error.args[0].str()}") from error
        while True:
            try:
                producer.init_transactions(_CALL_S)
                return producer
            except KafkaException as error:
                failure: KafkaError = error.args[0]
                _raise_refused(failure)
                if not failure.retriable():
                    raise Fatal(f"transactions are not possible: {failure.str()}") from error
                if self._give_up():
                    raise Retry(f"no transaction coordinator answers: {failure.str()}") from error
                log.warning("no transaction coordinator yet (%s), trying again", failure.str())

    def _on_delivery(self, error: KafkaError | None, message: Message) -> None:
        """Called for failures only (`delivery.report.only.error`); the transaction fails with them by itself."""
        if error is not None and error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
            self._refused.append((message.topic() or "", len(message.value() or b"")))

    @staticmethod
    def _on_error(error: KafkaError) -> None:
        log.warning("Kafka (producer): %s", error.str())


def _raise_refused(error: KafkaError) -> None:
    remedy = _REFUSED.get(error.code())
    if remedy is not None:
        raise Fatal(f"{remedy} ({error.str()})")
