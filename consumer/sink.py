"""Group commit: everything that has finished goes out in one transaction, again and again.  A thread of its own.

    loop ──Finished──► [inbox] ──gather──► pending ──commit──► Settled ──► loop
                                   ▲           │ aborted, stale, too large, unknown
                                   └─ recover ◄┘

Light load, small quick transactions; heavy load, they grow by themselves.  What is pending stays in memory until Kafka
has it, so that an abort costs no second inference.  There is one way to recover: establish what was committed, drop
what is not ours any more, send the rest again.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from consumer.errors import ConsumerError, Fatal, Retry
from consumer.outcome import (
    MembershipStale,
    Narrowed,
    OutcomeUnknown,
    Refusal,
    Refused,
    RetryTransaction,
)
from consumer.producer import TransactionalProducer
from consumer.records import Finished, Grant, Outgoing, Record, TopicPartition

__all__ = ["Aborted", "Settle", "Settled", "Sink", "SinkFailed", "WantGrant"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Settle:
    """Loop to sink: commit what is pending now, under this grant, and say when it is done."""

    grant: Grant
    done: threading.Event


@dataclass(frozen=True, slots=True)
class Settled:
    """Sink to loop: these chunks are over: committed, or dropped where their partitions went away."""

    numbers: tuple[int, ...]
    dropped: frozenset[TopicPartition]
    """Partitions whose part of them was dropped."""
    results: int
    """Results that became visible."""
    dead_letters: int
    refused: Mapping[str, int]
    """Results among them that a topic did not take and that became dead letters here, by reason."""
    began_ns: int
    ended_ns: int


@dataclass(frozen=True, slots=True)
class Aborted:
    """Sink to loop: a transaction was given up and is tried again."""

    reason: str


@dataclass(frozen=True, slots=True)
class WantGrant:
    """Sink to loop: the membership has changed; send a fresh `Grant`."""


@dataclass(frozen=True, slots=True)
class SinkFailed:
    """Sink to loop: cannot go on."""

    error: ConsumerError


Report = Settled | Aborted | WantGrant | SinkFailed

_FENCED_AGAIN_S = 30.0
_HEARTBEAT_S = 3.0  # a quarter of the default session_timeout_ms, and some more
_NO_MEMBER_S = 0.02
_MAX_FAILURES = 30
_REST_S = 0.0015
"""Between two transactions: the broker answers before it has ended one everywhere; the next would wait 20 ms for it."""


class Sink:
    """Owns the producer.  `submit` never blocks; `post` takes reports back to the loop.

    `refused(record, nbytes, topic, reason)` makes the dead letter for an event whose result a topic does not take;
    `lighten(letter, reason)` makes one that its own topic may take, None where nothing is left to change.
    """

    def __init__(
        self,
        producer_conf: Mapping[str, Any],
        admin_conf: Mapping[str, Any],
        group_id: str,
        *,
        topics: Sequence[str],
        commit_interval_ms: float,
        refused: Callable[[Record, int, str, str], Outgoing],
        lighten: Callable[[Outgoing, str], Outgoing | None],
        post: Callable[[Report], None],
    ) -> None:
        self._connect: Callable[[], TransactionalProducer] = lambda: TransactionalProducer(
            producer_conf, admin_conf, group_id, lambda: self._abandoned, topics
        )
        self._interval_s = commit_interval_ms / 1000
        self._refused = refused
        self._lighten = lighten
        self._post = post
        self._inbox: queue.Queue[Finished | Grant | Settle | None] = queue.Queue()
        self._pending: list[Finished] = []
        self._grant: Grant | None = None
        self._waiters: list[threading.Event] = []
        self._stopping = False
        self._abandoned = False
        self._failures = 0
        self._refusals: Counter[str] = Counter()
        self._fenced_at = float("-inf")
        self._began_s = self._ended_s = float("-inf")
        self._thread = threading.Thread(target=self._main, name="sink", daemon=True)

    def start(self) -> None:
        """Connect and take over the transactional id, which ends what a predecessor left open; does not wait."""
        self._thread.start()

    def submit(self, message: Finished | Grant | Settle) -> None:
        """A finished chunk, or what the sink needs to know about the membership."""
        self._inbox.put(message)
        if isinstance(message, Settle) and not self._thread.is_alive():
            message.done.set()  # nobody is left to answer

    def stop(self, timeout_s: float) -> bool:
        """Commit what is pending and end; False when the deadline passed first."""
        if not self._thread.is_alive():
            return True
        self._inbox.put(None)
        self._thread.join(timeout_s)
        self._abandoned = True
        return not self._thread.is_alive()

    # The sink thread.

    def _main(self) -> None:
        try:
            producer = self._connect()
            while not (self._stopping and not self._pending):
                self._gather()
                if self._pending:
                    self._commit_pending(producer)
                self._wake_waiters()
            producer.close()
        except ConsumerError as error:
            self._post(SinkFailed(error))
        except Exception as error:
            failure = Fatal(f"the sink failed: {type(error).__name__}: {error}")
            failure.__cause__ = error
            self._post(SinkFailed(failure))
        finally:
            self._wake_waiters()

    def _wake_waiters(self) -> None:
        for waiter in self._waiters:
            waiter.set()
        self._waiters.clear()

    def _gather(self) -> None:
        """Wait for work, then until the commit interval is over; somebody who waits for us cuts it short."""
        if not self._pending and not self._stopping:
            self._take(self._inbox.get())
        while not self._waiters and not self._stopping:
            left = max(self._began_s + self._interval_s, self._ended_s + _REST_S) - time.monotonic()
            try:
                self._take(self._inbox.get(timeout=left) if left > 0 else self._inbox.get_nowait())
            except queue.Empty:
                return

    def _take(self, message: Finished | Grant | Settle | None) -> None:
        match message:
            case Finished():
                self._pending.append(message)
            case Grant():
                self._grant = message
            case Settle():
                self._grant = message.grant
                self._waiters.append(message.done)
            case None:
                self._stopping = True

    def _commit_pending(self, producer: TransactionalProducer) -> None:
        """Bring everything pending into Kafka, however many attempts it takes."""
        began_ns = time.monotonic_ns()
        self._began_s = began_ns / 1e9
        numbers: set[int] = set()
        dropped: set[TopicPartition] = set()
        self._failures = 0
        self._refusals.clear()
        while True:
            grant = self._membership()  # takes in chunks meanwhile, which go with this transaction too
            numbers.update(finished.number for finished in self._pending)
            dropped |= self._drop_foreign(grant)
            if not self._pending or self._attempt(producer):
                break
            if self._failures >= _MAX_FAILURES:
                raise Fatal(
                    f"Kafka answers, but the same transaction failed {self._failures} times; the log says why. Its "
                    "records are done again after a restart"
                )
            if self._failures > 1:
                time.sleep(min(0.01 * 2**self._failures, 1.0))
        results = sum(len(finished.values) for finished in self._pending)
        dead = sum(len(finished.dead) for finished in self._pending)
        self._pending = []
        self._ended_s = time.monotonic()
        self._post(
            Settled(
                numbers=tuple(sorted(numbers)),
                dropped=frozenset(dropped),
                results=results,
                dead_letters=dead,
                refused=dict(self._refusals),
                began_ns=began_ns,
                ended_ns=time.monotonic_ns(),
            )
        )

    def _attempt(self, producer: TransactionalProducer) -> bool:
        """One transaction; after False everything is ready for the next."""
        assert self._grant is not None
        try:
            producer.commit(self._pending, self._grant.metadata)
            return True
        except RetryTransaction as aborted:
            log.warning("transaction aborted (%s); its results are kept and sent again", aborted)
            self._post(Aborted(aborted.reason))
            if isinstance(aborted, Refused):
                self._leave_out(aborted)
            elif not isinstance(aborted, Narrowed):
                self._failures += 1
            if isinstance(aborted, MembershipStale):
                self._await_grant()
        except OutcomeUnknown as unknown:
            log.warning(
                "transaction failed (%s); replacing the producer and looking what was committed", unknown
            )
            self._post(Aborted(unknown.reason))
            self._failures += 1
            if unknown.fenced:
                self._refuse_to_be_fenced_twice(producer.transactional_id)
                self._let_the_group_decide()
            producer.replace()
            self._drop_committed(producer)
        return False

    # What is pending.

    def _drop_foreign(self, grant: Grant) -> set[TopicPartition]:
        """Leave out what came from partitions that are not ours any more, or are ours anew and read again."""
        dropped: set[TopicPartition] = set()
        kept = []
        for finished in self._pending:
            gone = frozenset(tp for tp, epoch in finished.epochs.items() if grant.epochs.get(tp) != epoch)
            dropped |= gone
            rest = finished.without(gone)
            if rest.next_offsets:
                kept.append(rest)
        self._pending = kept
        return dropped

    def _drop_committed(self, producer: TransactionalProducer) -> None:
        """Settle an unknown outcome: what the group's committed offsets have passed is done, the rest is not.

        A transaction is whole, so either all of it is behind the offsets or none.  Partitions that somebody else has
        taken meanwhile may be further on: theirs are not ours to send either.
        """
        at = producer.committed(sorted({tp for f in self._pending for tp in f.next_offsets}))
        kept = []
        for finished in self._pending:
            done = frozenset(tp for tp, offset in finished.next_offsets.items() if offset <= at.get(tp, -1))
            rest = finished.without(done)
            if rest.next_offsets:
                kept.append(rest)
        log.info("%d of %d chunks had been committed", len(self._pending) - len(kept), len(self._pending))
        self._pending = kept

    def _membership(self) -> Grant:
        """What is ours, with the proof of it; without one only if there is nothing to prove."""
        while (grant := self._grant) is None or (grant.epochs and grant.metadata is None):
            self._await_grant()
        return grant

    def _await_grant(self) -> None:
        """Membership moved on: nothing can be committed until the loop says what is ours in the new generation."""
        self._wake_waiters()  # the loop waits for us in its callback: it cannot answer before it has our leave
        self._post(WantGrant())
        message = None
        while not isinstance(message, Grant | Settle):
            message = self._inbox.get()
            self._take(message)
            if self._stopping:
                raise Retry(
                    "stopped while the group was changing; the next worker does what is pending again"
                )
        if self._grant is not None and self._grant.metadata is None:
            time.sleep(_NO_MEMBER_S)  # no member at the moment; the loop hears of it in its next poll

    def _refuse_to_be_fenced_twice(self, transactional_id: str) -> None:
        now = time.monotonic()
        if now - self._fenced_at < _FENCED_AGAIN_S:
            raise Fatal(
                f"another worker uses the transactional id {transactional_id!r}: it has thrown this one out twice. "
                "Give every worker its own instance_name"
            )
        self._fenced_at = now

    def _let_the_group_decide(self) -> None:
        """Wait for a heartbeat: of two workers with one name the group throws the older out, and that one must not take
        the transactional id back meanwhile, or both would end."""
        until = time.monotonic() + _HEARTBEAT_S
        while (left := until - time.monotonic()) > 0:
            with suppress(queue.Empty):
                self._take(self._inbox.get(timeout=left))
            if self._stopping:
                raise Retry("stopped after its transactional id was taken over; the next worker goes on")

    def _leave_out(self, refused: Refused) -> None:
        """Replace what topics do not take: a result by a dead letter, a dead letter by one that asks for less."""
        guilty = {(r.topic, r.key, r.value): r for r in refused.records}
        replaced = 0
        for place, finished in enumerate(self._pending):
            dead = list(finished.dead)
            for i, letter in enumerate(dead):
                if (refusal := guilty.get((letter.topic, letter.key, letter.value))) is not None:
                    dead[i] = self._lighter(letter, refusal)
                    replaced += 1
            kept = replace(finished, dead=dead)
            for i in reversed(range(len(kept.values))):
                value, source = kept.values[i], kept.sources[i]
                if (refusal := guilty.get((kept.topic, source.key(), value))) is not None:
                    letter = self._refused(source, len(value), kept.topic, refusal.reason)
                    kept = kept.with_dead(i, letter)
                    self._refusals["result_too_large" if refusal.too_large else "result_refused"] += 1
                    replaced += 1
            self._pending[place] = kept
        if not replaced:
            raise Fatal(f"{refused}, and it is none of ours")

    def _lighter(self, letter: Outgoing, refusal: Refusal) -> Outgoing:
        lighter = self._lighten(letter, refusal.reason)
        if lighter is None:
            raise Fatal(
                f"topic {letter.topic!r} does not take a dead letter ({refusal.reason}), and there is nothing left to "
                "leave out: raise its max.message.bytes, and do not compact it"
            )
        return lighter
