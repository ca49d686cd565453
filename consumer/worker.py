"""The loop: one thread that owns the consumer, the order of things and nothing slow.

    Kafka ─poll─► chunk ─decode─► recall ─► prepare ─► batcher ─► device ─► finish ─► sink ─transaction─► Kafka
          └─────────── loop ────────────┘└─ pool ─┘└─ loop ─┘└ device ┘└─ loop ─┘└──── sink thread ────┘

`step` is one turn of it.  Other threads answer through one inbox.  Order and offsets belong to chunks, efficiency
belongs to batches: a batch may mix items of several chunks, a chunk goes to the sink when all its items are done and
all chunks before it have gone.
"""

from __future__ import annotations

import gc
import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from consumer.batcher import Batch, Batcher, Run, runs_of
from consumer.changelog import Changelog
from consumer.codec import Decoder
from consumer.config import Settings
from consumer.coverage import Coverage
from consumer.deadletter import Cap
from consumer.engine import Done, Engine, Failed, Work
from consumer.errors import BadRecord
from consumer.finish import Finisher
from consumer.flight import AtWork, Flights
from consumer.intake import Decoded, Intake
from consumer.memory import Memory
from consumer.pool import Pool, Prepared
from consumer.records import Chunk, Event, Offsets, TopicPartition
from consumer.sink import Aborted, Settle, Settled, Sink, SinkFailed, WantGrant
from consumer.source import Source
from consumer.tables import Tables
from consumer.task import Device, Item, Task
from consumer.telemetry import ChunkTrace, Telemetry

__all__ = ["Worker"]

log = logging.getLogger(__name__)

_IDLE_S = 0.1
_BUSY_S = 0.002
_RESTORE_S = 0.01
_UNDER_WAY = 2  # batches: one runs, one is staged


def _calm_garbage_collector() -> None:
    """Look for cycles rarely, and not among what is loaded: thousands of events in flight and no cycle among them made
    collections a sixth of all processor time (reference counts free the events at once, as ever)."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


class Worker:
    """All parts of one consumer-group member, and the loop that runs them.  One thread calls it."""

    def __init__(
        self,
        settings: Settings,
        task: Task,
        *,
        decoders: Mapping[str, Decoder],
        finisher: Finisher,
        choose_device: Callable[[], Device],
        telemetry: Telemetry,
        tables: Tables | None = None,
        until: Offsets | None = None,
    ) -> None:
        self._tables = tables
        self._settings = settings
        self._task = task
        self._finisher = finisher
        self._telemetry = telemetry
        self._inbox: queue.Queue[Done | Failed | Prepared | Any] = queue.Queue()
        post = self._inbox.put
        self._engine = Engine(task, choose_device, settings.budget, post)
        self._pool = (
            Pool(task, settings.prepare_threads, int(settings.max_prepared_bytes), post)
            if type(task).prepare is not Task.prepare
            else None
        )
        self._batcher = Batcher(settings.budget)
        self._cap = Cap(
            settings.dead_letter_max_share, settings.dead_letter_window, settings.dead_letter_max_run
        )
        self._sink = Sink(
            settings.producer_conf(settings.transactional_id),
            settings.admin_conf(),
            settings.group_id,
            topics=(settings.output_topic, settings.dead_letter_topic),
            commit_interval_ms=settings.commit_interval_ms,
            refused=finisher.letters.refused,
            lighten=finisher.letters.lighten,
            post=post,
        )
        self._source = Source(
            settings.consumer_conf(),
            settings.input_topics,
            max_chunk_records=settings.max_chunk_records,
            gather_ms=settings.gather_ms,
            revoked=self._settle,
            shut=finisher.store is not None,
            until=until,
            rebalanced=self._on_rebalance,
        )
        self._intake = Intake(self._source, decoders)
        self._memory = self._remember(finisher)
        self._coverage = self._cover()
        self._flights = Flights()
        self._on_device = 0
        self._membership_changed = False
        self._committed: dict[TopicPartition, int] = {}
        self._reported_s = 0.0
        self._closing_s = float("inf")
        self.stepped_ns = time.monotonic_ns()
        self.loaded = False
        self.published = 0
        """Results and dead letters that are visible."""

    def _remember(self, finisher: Finisher) -> Memory | None:
        if finisher.store is None:
            return None
        settings = self._settings
        changelog = Changelog(
            settings.admin_conf(), settings.group_id, finisher.changelogs, finisher.store.load
        )
        return Memory(self._task, finisher.store, changelog, self._source.open_up)

    def _cover(self) -> Coverage | None:
        if not self._settings.instance_name:
            return None
        return Coverage(
            self._settings.consumer_conf(),
            self._settings.admin_conf(),
            self._settings.input_topics,
            lambda: self._source.member,
            self._settings.session_timeout_ms / 1000,
        )

    @property
    def joined(self) -> bool:
        return self._source.joined

    @property
    def idle(self) -> bool:
        """Whether everything that was read is committed."""
        return not self._flights

    def start(self, stopping: Callable[[], bool] = lambda: False) -> None:
        """Fill the tables, load the model, then join the group: a broken model never takes partitions.

        `stopping` is asked while no broker answers: when it says so, this returns.
        """
        deadline_s = time.monotonic() + self._settings.startup_timeout_ms / 1000
        if self._tables is not None:
            self._tables.start(deadline_s, stopping)
        self._engine.start()
        self.loaded = True
        _calm_garbage_collector()
        if self._memory is not None:
            self._memory.check()
        self._sink.start()
        if self._coverage is not None:
            self._coverage.start()
        self._source.join(time.monotonic() + self._settings.startup_timeout_ms / 1000, stopping)

    def step(self, *, reading: bool = True) -> None:
        """One turn: take what other threads have done, dispatch, hand finished chunks to the sink, read on.

        Reading comes last because it may block until the next record: nothing that is ready may wait for that.
        """
        self.stepped_ns = time.monotonic_ns()
        self._collect(wait=not reading)
        self._dispatch()
        self._hand_over()
        if (decoded := self._read(reading)) is not None:
            self._admit(*decoded)
        self._report()

    def drain(self, deadline_s: float) -> bool:
        """Finish and commit what is in flight without reading on; False when `deadline_s` (monotonic) came first."""
        while not self.idle and time.monotonic() < deadline_s:
            self.step(reading=False)
        return self.idle

    def close(self, timeout_s: float) -> None:
        """Stop the threads and leave the group."""
        deadline = self._closing_s = time.monotonic() + timeout_s
        if self._coverage is not None:
            self._coverage.stop()
        if self._pool is not None:
            self._pool.stop()
        self._source.close()  # first: giving up the partitions settles what is finished, and the sink does that
        self._sink.stop(max(0.0, deadline - time.monotonic()))
        self._engine.stop(max(0.0, min(1.0, deadline - time.monotonic())))
        if self._memory is not None:
            self._memory.close()
        if self._tables is not None:
            self._tables.stop(max(0.0, min(1.0, deadline - time.monotonic())))

    # Reading.

    def _read(self, reading: bool) -> Decoded | None:
        if reading:
            decoded = self._intake.next(room=self._has_room, patience_s=self._patience_s())
        else:
            decoded = None
            self._intake.serve_group()
        self._announce()
        if self._memory is not None and self._memory.restoring:
            self._memory.restore(_RESTORE_S)
        return decoded

    @property
    def _has_room(self) -> bool:
        return (
            self._flights.records < self._settings.max_in_flight_records
            and self._flights.nbytes < self._settings.max_in_flight_bytes
        )

    def _patience_s(self) -> float:
        """How long a poll may block: not at all while other threads work for us, for they answer elsewhere."""
        if self._on_device or self._preparing or (self._memory is not None and self._memory.restoring):
            return 0.0
        due_ns = self._batcher.due_ns()
        if due_ns is None:
            return _IDLE_S
        return min(_IDLE_S, max(0.0, (due_ns - time.monotonic_ns()) / 1e9))

    def _admit(self, chunk: Chunk, events: list[Event | BadRecord]) -> None:
        self._telemetry.polled(len(events), chunk.nbytes)
        recalled, changes = (None, []) if self._memory is None else self._memory.recall(chunk, events)
        opened = self._flights.admit(chunk, events, self._telemetry.open(chunk), recalled, changes)
        for start, stop in opened.good_stretches():
            self._prepare(opened, start, stop)

    def _prepare(self, opened: AtWork, start: int, stop: int) -> None:
        number = opened.chunk.number
        if self._pool is None:
            self._batcher.add(Run(number, start, stop, 1, 0, opened.chunk.received_ns))
            return
        size = self._settings.prepare_slice or self._task.prepare_slice
        for begin in range(start, stop, size):
            end = min(begin + size, stop)
            recalled = None if opened.recalled is None else opened.recalled[begin:end]
            self._pool.submit(number, begin, opened.values[begin:end], recalled)

    # What other threads have done.

    def _collect(self, *, wait: bool) -> None:
        """Handle all answers; wait a moment for one when there is nothing better to do."""
        wait = wait or (
            bool(self._on_device or self._preparing or self._intake.full) and not self._intake.flowing
        )
        try:
            answer = self._inbox.get(timeout=_BUSY_S) if wait else self._inbox.get_nowait()
            while True:
                self._handle(answer)
                answer = self._inbox.get_nowait()
        except queue.Empty:
            return

    def _handle(self, answer: Any) -> None:
        match answer:
            case Done():
                self._on_done(answer)
            case Prepared():
                self._on_prepared(answer)
            case Settled():
                self._on_settled(answer)
            case Aborted():
                self._telemetry.aborted(answer.reason)
            case WantGrant():
                self._sink.submit(self._source.grant())
            case Failed() | SinkFailed():
                raise answer.error

    def _on_prepared(self, done: Prepared) -> None:
        assert self._pool is not None
        nbytes = self._pool.done(done)
        opened = self._flights.at_work.get(done.chunk)
        if opened is None:
            return
        self._flights.hold(opened, nbytes)
        for place, item in enumerate(done.items, done.start):
            if isinstance(item, Item):
                opened.values[place] = item.value
            else:
                item.stage = item.stage or "prepare"
                opened.outputs[place] = item
                opened.missing -= 1
        for run in runs_of(done.chunk, done.start, done.items, opened.chunk.received_ns):
            self._batcher.add(run)

    def _on_done(self, done: Done) -> None:
        self._on_device -= 1
        if done.out_of_memory:
            self._batcher.shrink(done.batch)
            log.warning("the device ran out of memory; batches shrink to %s", self._batcher.budget)
        begin = 0
        for run in done.batch.runs:
            end = begin + len(run)
            opened = self._flights.at_work.get(run.chunk)
            if opened is not None:
                opened.outputs[run.start : run.stop] = done.outputs[begin:end]
                opened.done_ns = done.ended_ns
                opened.values[run.start : run.stop] = [None] * len(run)  # pictures are large: gone when seen
                opened.missing -= len(run)
                self._flights.hold(opened, -run.nbytes * len(run))
            begin = end
        self._telemetry.device_ran((done.ended_ns - done.begun_ns) / 1e6)

    def _on_settled(self, settled: Settled) -> None:
        now_ms = time.time_ns() / 1e6
        for number in settled.numbers:
            flight = self._flights.settle(number)
            flight.end_trace(settled)
            if settled.dropped.isdisjoint(flight.chunk.next_offsets):
                self._telemetry.latency(flight.chunk.records, now_ms)
                self._telemetry.keep(flight.chunk, flight.past(settled), flight.recorded)
                self._committed.update(flight.chunk.next_offsets)
        visible = settled.results + settled.dead_letters
        if visible:
            self.published += visible
            self._telemetry.committed((settled.ended_ns - settled.began_ns) / 1e6, visible)
            self._telemetry.published(settled.results)
        for reason, times in settled.refused.items():
            self._telemetry.dead(reason, times)
            self._cap.observe(range(times), times, BadRecord(reason, stage="publish"))

    # Working.

    @property
    def _preparing(self) -> bool:
        return self._pool is not None and self._pool.busy

    def _dispatch(self) -> None:
        if self._pool is not None:
            self._pool.feed(self._flights.held)
        while self._on_device < _UNDER_WAY:
            batch = self._batcher.take(time.monotonic_ns(), idle=self._on_device == 0)
            if batch is None:
                return
            values: list[Any] = []
            for run in batch.runs:
                opened = self._flights.at_work[run.chunk]
                opened.began_ns = opened.began_ns or time.monotonic_ns()
                values += opened.values[run.start : run.stop]
            wait_ms = (time.monotonic_ns() - batch.oldest_ns) / 1e6
            self._telemetry.batch_closed(
                batch.reason, batch.items, batch.tokens, batch.padded_tokens, wait_ms
            )
            self._on_device += 1
            self._engine.submit(
                Work(batch, values, partial(self._telemetry.batch, self._traced(batch), **self._about(batch)))
            )

    def _traced(self, batch: Batch) -> list[tuple[ChunkTrace, range]]:
        """The traces in the batch, with the places of its items in them."""
        return [
            (trace, range(run.start, run.stop))
            for run in batch.runs
            if (trace := self._flights.at_work[run.chunk].trace) is not None
        ]

    def _about(self, batch: Batch) -> dict[str, Any]:
        return {
            "number": batch.number,
            "reason": batch.reason,
            "items": batch.items,
            "tokens": batch.tokens,
            "padded_tokens": batch.padded_tokens,
            "device": self._engine.device.name,
            "model": self._task.name,
            "version": self._task.version,
        }

    def _hand_over(self) -> None:
        """Chunks leave in the order in which they came."""
        for opened in self._flights.pop_done():
            finished, rejected, silent = self._finisher.finish(
                opened.chunk, opened.events, opened.outputs, opened.trace, opened.changes
            )
            self._flights.note(opened, rejected, silent)
            self._count(rejected, len(opened.chunk.records))
            self._sink.submit(finished)

    def _count(self, rejected: Mapping[int, BadRecord], count: int) -> None:
        """Raises Fatal when there are too many dead letters; this chunk is then not committed."""
        latest = rejected[max(rejected)] if rejected else None
        if latest is not None:
            log.warning(
                "%d of %d records became dead letters, the last for: %s", len(rejected), count, latest.reason
            )
            for reason, times in Counter(error.reason for error in rejected.values()).items():
                self._telemetry.dead(reason, times)
        self._cap.observe(sorted(rejected), count, latest)

    # The group.

    def _settle(self, gone: frozenset[TopicPartition]) -> None:
        """Inside a poll, while `gone` are still ours: what is finished of them is committed now or never."""
        done = threading.Event()
        self._sink.submit(Settle(self._source.grant(), done))
        patience_s = min(self._settings.revoke_deadline_ms / 1000, self._closing_s - time.monotonic())
        if not done.wait(max(0.0, patience_s)):
            log.warning(
                "the transaction in flight did not end within revoke_deadline_ms or the time for stopping; its "
                "partitions go, and the broker refuses it when it comes too late"
            )

    def _on_rebalance(self, kind: str, partitions: int) -> None:
        self._membership_changed = True
        self._telemetry.rebalanced(kind, partitions)

    def _announce(self) -> None:
        """After a rebalance: tell the sink what is ours, and drop the chunks of which nothing is."""
        if not self._membership_changed:
            return
        self._membership_changed = False
        grant = self._source.grant()
        self._sink.submit(grant)
        if self._memory is not None:
            self._memory.follow(grant.epochs)
        gone = self._flights.drop_foreign(grant.epochs)
        if gone:
            self._batcher.drop(gone.__contains__)
            if self._pool is not None:
                self._pool.drop(gone)
        self._committed = {tp: offset for tp, offset in self._committed.items() if tp in grant.epochs}

    def _report(self) -> None:
        now = time.monotonic()
        if now - self._reported_s >= 1.0:
            self._reported_s = now
            self._telemetry.lag(self._source.lag(self._committed))
            self._telemetry.in_flight(self._flights.records, self._flights.nbytes)
            if (store := self._finisher.store) is not None:
                self._telemetry.state(len(store), store.nbytes)
