"""The transactional producer: one transaction at a time, every failure sorted into an `outcome`.  Sink thread only."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer
from confluent_kafka import TopicPartition as ClientPartition

from consumer.errors import Fatal, Retry
from consumer.outcome import MembershipStale, Narrowed, OutcomeUnknown, Refusal, Refused, RetryTransaction
from consumer.records import Finished, TopicPartition

__all__ = ["TransactionalProducer"]

log = logging.getLogger(__name__)

_CALL_S = 15.0
_OFFSETS_S = 2.0
_ABORT_S = 10.0
"""How long after its time-out a broker ends a transaction, at most (transaction.abort.timed.out...interval.ms)."""
_STUCK = (
    "; if the brokers are up, one has lost the end of a transaction (KAFKA-20734): kafka-transactions.sh find-hanging "
    "finds it on the partitions of __consumer_offsets, and its abort ends it"
)
_STALE_MEMBERSHIP = {
    KafkaError.ILLEGAL_GENERATION,
    KafkaError.UNKNOWN_MEMBER_ID,
    KafkaError.REBALANCE_IN_PROGRESS,
    KafkaError.FENCED_INSTANCE_ID,
    KafkaError._ASSIGNMENT_LOST,
}
_NOT_TAKEN = {KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_RECORD, KafkaError.INVALID_TIMESTAMP}
"""What a topic has against a record.  A broker answers so for the whole batch that the record is in."""
_UNDERSTOOD = _STALE_MEMBERSHIP | _NOT_TAKEN
_USUAL_BATCH_BYTES = 1_000_000
_NARROWER = 32
_FENCED = {KafkaError._FENCED, KafkaError.PRODUCER_FENCED, KafkaError.INVALID_PRODUCER_EPOCH}
_NO_TOPIC = "{} does not exist: create it (consumer topics create)"
_REMEDIES = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "this user may not write to {}: grant WRITE and DESCRIBE on it",
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


class TransactionalProducer:
    """Publishes and commits.  `give_up` is asked between attempts while no coordinator answers.

    Raises Fatal when one of `topics`, which will be written to, does not exist.
    """

    def __init__(
        self,
        conf: Mapping[str, Any],
        admin_conf: Mapping[str, Any],
        group_id: str,
        give_up: Callable[[], bool],
        topics: Sequence[str] = (),
    ) -> None:
        self._conf = {**conf, "error_cb": self._on_error}
        self._admin_conf = dict(admin_conf)
        self._group_id = group_id
        self._give_up = give_up
        self._refused: list[Refusal] = []
        self._hopeless: Fatal | None = None
        self._batch_bytes = self._usual_batch_bytes = int(conf.get("batch.size", _USUAL_BATCH_BYTES))
        self._back_to_usual = False
        self._timeout_s = float(conf.get("transaction.timeout.ms", 60_000)) / 1000
        self._deadline = float("inf")
        self._caller = _Caller()
        self._producer = self._connect()
        for topic in topics:
            self._find(topic)

    @property
    def transactional_id(self) -> str:
        return str(self._conf.get("transactional.id"))

    def commit(self, pending: Sequence[Finished], metadata: Any) -> None:
        """Publish everything in `pending` together with its offsets: one transaction, visible when this returns.

        Raises RetryTransaction, OutcomeUnknown, or Fatal for what no retry can mend.
        """
        producer = self._producer
        self._refused.clear()
        self._deadline = time.monotonic() + self._timeout_s
        offsets: dict[TopicPartition, int] = {}
        for finished in pending:
            offsets.update(finished.next_offsets)
        positions = [ClientPartition(topic, partition, at) for (topic, partition), at in offsets.items()]
        try:
            producer.begin_transaction()
            for finished in pending:
                self._publish(finished)
            if self._batch_bytes < self._usual_batch_bytes:
                producer.flush(
                    self._timeout_s
                )  # what fails now must not meet the calls below: they may hang then
            if self._refused:
                raise KafkaException(KafkaError(KafkaError.MSG_SIZE_TOO_LARGE))
            self._insist(lambda: producer.send_offsets_to_transaction(positions, metadata, _CALL_S))
            self._insist(producer.commit_transaction)
        except KafkaException as error:
            raise self._sorted(error.args[0]) from error
        if self._batch_bytes < self._usual_batch_bytes:
            self._widen()

    def replace(self) -> None:
        """A new producer with the same id: taking the id over settles whatever the old one left open."""
        self.close()
        self._producer = self._connect()

    def committed(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """The group's committed offsets, once no transaction is open on them; negative where there is none."""
        overdue = time.monotonic() + self._timeout_s + _ABORT_S
        while True:
            try:
                found = self._ask_for_offsets(partitions)
                if failed := next((p.error for p in found if p.error is not None), None):
                    raise KafkaException(failed)
                return {(p.topic, p.partition): p.offset for p in found}
            except KafkaException as error:
                _raise_refused(error.args[0])
                if self._give_up():
                    raise Retry(f"committed offsets are not readable: {error.args[0].str()}") from error
                log.warning(
                    "committed offsets are not readable yet (%s), trying again%s",
                    error.args[0].str(),
                    _STUCK if time.monotonic() > overdue else "",
                )
                time.sleep(0.1)

    def _ask_for_offsets(self, partitions: Sequence[TopicPartition]) -> list[ClientPartition]:
        """Through a consumer that never joins: the admin client's call crashes the interpreter while the group's
        coordinator moves (confluent-kafka 2.16)."""
        reader = Consumer(
            {
                **self._admin_conf,
                "group.id": self._group_id,
                "enable.auto.commit": False,
                "isolation.level": "read_committed",  # not before open transactions on the offsets have ended
            },
            logger=logging.getLogger("consumer.librdkafka"),
        )
        try:
            return reader.committed([ClientPartition(*tp) for tp in partitions], timeout=_OFFSETS_S)
        finally:
            reader.close()

    def close(self) -> None:
        """Throw away what is left in the client's queues: it belongs to a transaction that is over."""
        self._producer.purge()

    # One transaction.

    def _publish(self, finished: Finished) -> None:
        begin = 0  # of a stretch without headers: those go together, at a fraction of the cost
        for place, headers in enumerate(finished.headers or ()):
            if headers is not None:
                self._publish_plain(finished, begin, place)
                source, begin = finished.sources[place], place + 1
                self._publish_one(finished.topic, source.key(), finished.values[place], headers, 0)
        self._publish_plain(finished, begin, len(finished.values))
        for letter in finished.dead:
            self._publish_one(letter.topic, letter.key, letter.value, letter.headers, letter.timestamp_ms)
        for change in finished.changes:
            topic, number = change.source
            self._publish_one(
                finished.changelogs[topic],
                change.key,
                change.value,
                None,
                change.timestamp_ms,
                partition=number,
            )

    def _publish_plain(self, finished: Finished, begin: int, end: int) -> None:
        rows: list[dict[str, Any]] = [
            {"value": value, "key": source.key()}
            for value, source in zip(finished.values[begin:end], finished.sources[begin:end], strict=True)
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
                self._refuse(topic, row["key"], row["value"], error, alone=True)
            elif error.code() == KafkaError._QUEUE_FULL:
                again.append(row)
            else:
                _raise_refused(error, topic)
                raise KafkaException(error)
        if again:
            self._producer.poll(0.05)
        return again

    def _publish_one(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Any,
        timestamp_ms: int,
        partition: int = -1,
    ) -> None:
        while True:
            try:
                self._producer.produce(
                    topic,
                    value=value,
                    key=key,
                    headers=headers,
                    timestamp=timestamp_ms,
                    partition=partition,
                    on_delivery=self._on_delivery,
                )
                return
            except BufferError:
                self._producer.poll(0.05)
            except KafkaException as error:
                _raise_refused(error.args[0], topic)
                if error.args[0].code() != KafkaError.MSG_SIZE_TOO_LARGE:
                    raise
                # this error does not fail the transaction: unnoticed, the record would be missing for ever
                self._refuse(topic, key, value, error.args[0], alone=True)
                return

    def _insist(self, call: Callable[[], object]) -> None:
        """Repeat a transactional call while the client says that it may be repeated, and the transaction lives."""
        while True:
            try:
                self._caller.call(call, self._deadline)
                return
            except KafkaException as error:
                if not error.args[0].retriable() or self._is_late:
                    raise
                log.warning("Kafka is slow to answer (%s), trying again", error.args[0].str())

    @property
    def _is_late(self) -> bool:
        """Whether the broker has given the transaction up by now."""
        return time.monotonic() >= self._deadline

    def _sorted(self, error: KafkaError) -> Retry:
        """What the failure of a transaction means.

        Only after an answer of the broker that is no doubt the producer is used again: after a time-out the client may
        wait for ever in its next transaction, and a late one is fenced by the broker as if by another producer.
        """
        if not error.fatal():  # else the client's callbacks fail too
            self._producer.purge()
            self._producer.flush(1.0)  # hear all that was refused
        if self._hopeless is not None:
            raise self._hopeless
        _raise_refused(error)
        reason, late = error.name(), self._is_late
        usable = not error.fatal() and not late and error.code() in _UNDERSTOOD and self._abort()
        if self._refused:  # such a transaction is never committed
            if not usable:
                self.replace()
            return self._find_guilty(error)
        if not usable:
            return OutcomeUnknown(reason, error.str(), fenced=error.code() in _FENCED and not late)
        return MembershipStale(reason, error.str())

    def _find_guilty(self, error: KafkaError) -> RetryTransaction:
        """A broker refuses whole batches: they get smaller until what is refused stands alone in its batch."""
        guilty = [refusal for refusal in self._refused if refusal.alone]
        if guilty:
            self._back_to_usual = True
            return Refused(guilty)
        by_size = all(refusal.too_large for refusal in self._refused)
        self._back_to_usual = not by_size
        self._batch_bytes = self._batch_bytes // _NARROWER or 1 if by_size else 1
        self.replace()
        return Narrowed(error.name(), f"{error.str()}; sending batches of {self._batch_bytes} bytes")

    def _narrow(self) -> dict[str, Any]:
        """Batches one after the other: those behind a refused one would fail for another reason."""
        if self._batch_bytes == self._usual_batch_bytes:
            return {"batch.size": self._batch_bytes}
        return {"batch.size": self._batch_bytes, "max.in.flight.requests.per.connection": 1}

    def _widen(self) -> None:
        """After a transaction in narrow batches: they stay so where no single record was at fault."""
        if self._back_to_usual:
            self._batch_bytes = self._usual_batch_bytes
            self._back_to_usual = False
            self.replace()
        else:
            self._usual_batch_bytes = self._batch_bytes
            log.warning(
                "a topic takes less than a usual batch: staying at batches of %d bytes; raise its max.message.bytes",
                self._batch_bytes,
            )

    def _refuse(
        self, topic: str, key: bytes | None, value: bytes | None, error: KafkaError, *, alone: bool
    ) -> None:
        self._refused.append(Refusal(topic, key, value, error.name(), alone))

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
            producer = Producer(
                self._conf | self._narrow(),
                logger=logging.getLogger("consumer.librdkafka"),
            )
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

    def _find(self, topic: str) -> None:
        """Say now that a topic is missing: its first record would wait half a minute for it."""
        try:
            found = self._producer.list_topics(topic, timeout=_CALL_S).topics[topic]
        except KafkaException as error:
            log.warning("cannot look for topic %r (%s)", topic, error.args[0].str())
            return
        if found.error is not None:
            _raise_refused(found.error, topic)

    def _on_delivery(self, error: KafkaError | None, message: Message) -> None:
        """Called for failures only (`delivery.report.only.error`); the transaction fails with them by itself."""
        if error is None:
            return
        if error.code() in _REMEDIES:
            self._hopeless = _refusal(error, message.topic())
        elif error.code() in _NOT_TAKEN:
            key, value = message.key(), message.value()
            too_large = error.code() == KafkaError.MSG_SIZE_TOO_LARGE
            # a batch never grows beyond batch.size, except by its first record
            alone = self._batch_bytes == 1 or (too_large and len(message) >= self._batch_bytes)
            self._refuse(message.topic() or "", key, value, error, alone=alone)

    @staticmethod
    def _on_error(error: KafkaError) -> None:
        log.warning("Kafka (producer): %s", error.str())


class _Caller:
    """Makes transactional calls on a thread of its own, and waits for them no longer than until a deadline.

    They can hang for ever after a broker went away, whatever their time-outs say (librdkafka's own issues 5456 and
    5511).  A hanging call stays behind with its producer, which the next one of the same id fences.
    """

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._answers: queue.Queue[BaseException | None] = queue.Queue()
        self._start()

    def call(self, call: Callable[[], object], deadline_s: float) -> None:
        """Raises what `call` raises, and a time-out at `deadline_s` (monotonic)."""
        self._calls.put(call)
        try:
            error = self._answers.get(timeout=max(0.0, deadline_s - time.monotonic()))
        except queue.Empty:
            self._start()
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT)) from None
        if error is not None:
            raise error

    def _start(self) -> None:
        """A thread with queues of its own: what an old one may still answer reaches nobody, and then it ends."""
        self._calls.put(None)
        self._calls, self._answers = queue.SimpleQueue(), queue.Queue()
        threading.Thread(
            target=self._serve, args=(self._calls, self._answers), name="transaction", daemon=True
        ).start()

    @staticmethod
    def _serve(
        calls: queue.SimpleQueue[Callable[[], object] | None],
        answers: queue.Queue[BaseException | None],
    ) -> None:
        while (call := calls.get()) is not None:
            try:
                call()
            except BaseException as error:
                answers.put(error)
            else:
                answers.put(None)


def _raise_refused(error: KafkaError, topic: str | None = None) -> None:
    if error.code() in _REMEDIES:
        raise _refusal(error, topic)


def _refusal(error: KafkaError, topic: str | None) -> Fatal:
    place = "a topic to write to" if topic is None else f"topic {topic!r}"
    return Fatal(f"{_REMEDIES[error.code()].format(place)} ({error.str()})")
