"""The loop: one thread that owns the consumer, the order of things and nothing slow.

    Kafka ─poll─► chunk ─decode─► prepare ─► batcher ─► device ─► finish ─► sink ─transaction─► Kafka
          └─────── loop ───────┘└─ pool ─┘└─ loop ─┘└ device ┘└─ loop ─┘└──── sink thread ────┘

`step` is one turn of it.  Other threads answer through one inbox.  Order and offsets belong to chunks, efficiency belongs
to batches: a batch may mix items of several chunks, a chunk goes to the sink when all its items are done and all chunks
before it have gone.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from consumer.batcher import Batch, Batcher, Run, runs_of
from consumer.codec import Decoder
from consumer.config import Settings
from consumer.deadletter import Cap
from consumer.engine import Done, Engine, Failed, Work
from consumer.errors import BadRecord, Retry
from consumer.finish import Finisher
from consumer.pool import Pool, Prepared
from consumer.records import Chunk, Event, TopicPartition
from consumer.sink import Aborted, Settle, Settled, Sink, SinkFailed, WantGrant
from consumer.source import Source
from consumer.task import Device, Item, Task
from consumer.telemetry import ChunkTrace, Telemetry

__all__ = ["Worker"]

log = logging.getLogger(__name__)

_IDLE_S = 0.1
_BUSY_S = 0.002
_FULL_BEFORE_HOLD_S = 0.5
_REGISTRY_RETRY_S = 1.0
_UNDER_WAY = 2  # batches: one runs, one is staged


@dataclass(slots=True)
class Open:
    """A chunk that is being worked on.  `outputs[i]` is a BadRecord where record i went wrong."""

    chunk: Chunk
    events: Sequence[Event | BadRecord]
    values: list[Any]
    """What the model gets, by place: the events themselves where nothing is prepared."""
    outputs: list[Any]
    missing: int
    """Outputs that are still to come."""
    trace: ChunkTrace | None


@dataclass(frozen=True, slots=True)
class InFlight:
    """A chunk between the loop and its commit."""

    chunk: Chunk
    trace: ChunkTrace | None
    events: Sequence[Event | BadRecord] = ()
    """Kept for the ids in the spans, where there are any."""
    rejected: Mapping[int, str] = field(default_factory=dict)
    silent: Set[int] = frozenset()

    def end_trace(self, settled: Settled) -> None:
        if self.trace is not None:
            self.trace.drop(settled.dropped)
            commit_ms = (settled.ended_ns - settled.began_ns) / 1e6
            self.trace.end(
                commit_ms=commit_ms, rejected=self.rejected, silent=self.silent, event_ids=self._event_id
            )

    def _event_id(self, place: int) -> str | None:
        event = self.events[place]
        return None if isinstance(event, BadRecord) else str(event.get("id"))


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
    ) -> None:
        self._settings = settings
        self._task = task
        self._decoders = decoders
        self._finisher = finisher
        self._telemetry = telemetry
        self._inbox: queue.SimpleQueue[Done | Failed | Prepared | Any] = queue.SimpleQueue()
        post = self._inbox.put
        self._engine = Engine(task, choose_device, settings.budget, post)
        self._pool = (
            Pool(task, settings.prepare_threads, post) if type(task).prepare is not Task.prepare else None
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
            rebalanced=self._on_rebalance,
        )
        self._open: dict[int, Open] = {}
        self._in_flight: dict[int, InFlight] = {}
        self._records = 0
        self._bytes = 0
        self._on_device = 0
        self._preparing = 0
        self._flowing = False
        self._membership_changed = False
        self._full_since: float | None = None
        self._deferred: deque[Chunk] = deque()
        self._deferred_until = 0.0
        self._committed: dict[TopicPartition, int] = {}
        self._lag_at = 0.0
        self.stepped_ns = time.monotonic_ns()
        self.loaded = False
        self.published = 0
        """Results and dead letters that are visible."""

    @property
    def joined(self) -> bool:
        return self._source.joined

    @property
    def idle(self) -> bool:
        """Whether everything that was read is committed."""
        return not self._open and not self._in_flight and not self._deferred

    def start(self, stopping: Callable[[], bool] = lambda: False) -> None:
        """Load the model, then join the group: a broken model never takes partitions.

        `stopping` is asked while no broker answers: when it says so, this returns.
        """
        self._engine.start()
        self.loaded = True
        self._sink.start()
        self._source.join(time.monotonic() + self._settings.startup_timeout_ms / 1000, stopping)

    def step(self, *, reading: bool = True) -> None:
        """One turn: take what other threads have done, read on, dispatch, hand finished chunks to the sink."""
        self.stepped_ns = time.monotonic_ns()
        self._collect(wait=not reading)
        if not reading:
            self._serve_group()
        elif (chunk := self._poll()) is not None:
            self._admit(chunk)
        self._dispatch()
        self._hand_over()
        self._report()

    def drain(self, deadline_s: float) -> bool:
        """Finish and commit what is in flight without reading on; False when `deadline_s` (monotonic) came first."""
        self._deferred.clear()
        while not self.idle and time.monotonic() < deadline_s:
            self.step(reading=False)
        return self.idle

    def close(self, timeout_s: float) -> None:
        """Stop the threads and leave the group."""
        deadline = time.monotonic() + timeout_s
        if self._pool is not None:
            self._pool.stop()
        self._source.close()  # first: giving up the partitions settles what is finished, and the sink does that
        self._sink.stop(max(0.0, deadline - time.monotonic()))
        self._engine.stop(max(0.0, min(1.0, deadline - time.monotonic())))

    # Reading.

    def _poll(self) -> Chunk | None:
        if self._deferred:
            return self._again()
        if (
            self._records >= self._settings.max_in_flight_records
            or self._bytes >= self._settings.max_in_flight_bytes
        ):
            return self._poll_full()
        self._full_since = None
        self._source.release()
        chunk = self._source.poll(self._patience_s())
        self._flowing = chunk is not None
        self._announce()
        return chunk

    def _poll_full(self) -> Chunk | None:
        """No room.  A short stall keeps the prefetched records; in a long one the group must be served."""
        self._flowing = False
        now = time.monotonic()
        self._full_since = self._full_since or now
        if now - self._full_since < _FULL_BEFORE_HOLD_S:
            return None
        self._source.hold()
        chunk = self._source.poll(0)
        self._announce()
        return chunk

    def _serve_group(self) -> None:
        """Stay a member without reading on: what comes all the same is left to the next worker."""
        self._source.hold()
        self._source.poll(0)
        self._announce()

    def _again(self) -> Chunk | None:
        """The registry was away when these chunks came: keep them and the membership, and try again."""
        self._source.hold()
        if (stray := self._source.poll(0.05)) is not None:
            self._deferred.append(stray)
        self._announce()
        return self._deferred.popleft() if time.monotonic() >= self._deferred_until else None

    def _patience_s(self) -> float:
        """How long a poll may block: not at all while other threads work for us, for they answer elsewhere."""
        if self._on_device or self._preparing:
            return 0.0
        due_ns = self._batcher.due_ns()
        if due_ns is None:
            return _IDLE_S
        return min(_IDLE_S, max(0.0, (due_ns - time.monotonic_ns()) / 1e9))

    def _admit(self, chunk: Chunk) -> None:
        try:
            events = self._decode(chunk)
        except Retry as outage:
            log.warning("%s; the records are kept and tried again", outage)
            self._deferred.appendleft(chunk)
            self._deferred_until = time.monotonic() + _REGISTRY_RETRY_S
            return
        count = len(events)
        trace = self._telemetry.open(chunk)
        outputs: list[Any] = [event if type(event) is BadRecord else None for event in events]
        missing = count - sum(output is not None for output in outputs)
        values = events if self._pool is None else list(events)
        opened = Open(chunk, events, values, outputs, missing, trace)
        self._open[chunk.number] = opened
        self._in_flight[chunk.number] = InFlight(chunk, trace, events if trace is not None else ())
        self._records += count
        self._bytes += chunk.nbytes
        self._telemetry.polled(count, chunk.nbytes)
        for start, stop in _good_stretches(outputs):
            self._prepare(opened, start, stop)

    def _decode(self, chunk: Chunk) -> list[Event | BadRecord]:
        if len(self._decoders) == 1:
            (decoder,) = self._decoders.values()
            return decoder.decode_many([record.value() for record in chunk.records])
        places: dict[str, list[int]] = {}
        for place, record in enumerate(chunk.records):
            places.setdefault(record.topic(), []).append(place)
        events: list[Event | BadRecord] = [{}] * len(chunk.records)
        for topic, where in places.items():
            decoded = self._decoders[topic].decode_many([chunk.records[i].value() for i in where])
            for place, event in zip(where, decoded, strict=True):
                events[place] = event
        return events

    def _prepare(self, opened: Open, start: int, stop: int) -> None:
        number = opened.chunk.number
        if self._pool is None:
            self._batcher.add(Run(number, start, stop, 1, 0, opened.chunk.received_ns))
            return
        size = self._settings.prepare_slice
        for begin in range(start, stop, size):
            self._pool.submit(number, begin, opened.values[begin : min(begin + size, stop)])
            self._preparing += 1

    # What other threads have done.

    def _collect(self, *, wait: bool) -> None:
        """Handle all answers; wait a moment for one when there is nothing better to do."""
        wait = wait or (bool(self._on_device or self._preparing or self._full_since) and not self._flowing)
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
        self._preparing -= 1
        opened = self._open.get(done.chunk)
        if opened is None:
            return
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
            opened = self._open.get(run.chunk)
            if opened is not None:
                opened.outputs[run.start : run.stop] = done.outputs[begin:end]
                opened.missing -= len(run)
            begin = end
        self._telemetry.device_ran((done.ended_ns - done.begun_ns) / 1e6)

    def _on_settled(self, settled: Settled) -> None:
        now_ms = time.time_ns() / 1e6
        for number in settled.numbers:
            flight = self._in_flight.pop(number)
            self._release(flight.chunk)
            flight.end_trace(settled)
            if settled.dropped.isdisjoint(flight.chunk.next_offsets):
                self._telemetry.latency(flight.chunk.records, now_ms)
                self._committed.update(flight.chunk.next_offsets)
        visible = settled.results + settled.dead_letters
        if visible:
            self.published += visible
            self._telemetry.committed((settled.ended_ns - settled.began_ns) / 1e6, visible)
            self._telemetry.published(settled.results)

    def _release(self, chunk: Chunk) -> None:
        self._records -= len(chunk.records)
        self._bytes -= chunk.nbytes

    # Working.

    def _dispatch(self) -> None:
        while self._on_device < _UNDER_WAY:
            batch = self._batcher.take(time.monotonic_ns(), idle=self._on_device == 0)
            if batch is None:
                return
            values: list[Any] = []
            for run in batch.runs:
                values += self._open[run.chunk].values[run.start : run.stop]
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
            if (trace := self._open[run.chunk].trace) is not None
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
        while self._open:
            number, opened = next(iter(self._open.items()))
            if opened.missing:
                return
            del self._open[number]
            finished, rejected, silent = self._finisher.finish(
                opened.chunk, opened.events, opened.outputs, opened.trace
            )
            self._count(opened, rejected, silent)
            self._sink.submit(finished)

    def _count(self, opened: Open, rejected: Mapping[int, BadRecord], silent: Set[int]) -> None:
        count, number = len(opened.chunk.records), opened.chunk.number
        if silent and opened.trace is not None:
            self._in_flight[number] = replace(self._in_flight[number], silent=silent)
        if rejected:
            reasons = {place: error.reason for place, error in rejected.items()}
            self._in_flight[number] = replace(self._in_flight[number], rejected=reasons)
            for reason, times in Counter(reasons.values()).items():
                self._telemetry.dead(reason, times)
            worst = rejected[max(rejected)]
            log.warning(
                "%d of %d records became dead letters, the last for: %s", len(rejected), count, worst.reason
            )
            self._cap.observe(sorted(rejected), count, worst)
        else:
            self._cap.observe((), count, None)

    # The group.

    def _settle(self, gone: frozenset[TopicPartition]) -> None:
        """Inside a poll, while `gone` are still ours: what is finished of them is committed now or never."""
        done = threading.Event()
        self._sink.submit(Settle(self._source.grant(), done))
        if not done.wait(self._settings.revoke_deadline_ms / 1000):
            log.warning(
                "the transaction in flight did not end within revoke_deadline_ms; its partitions go, and the broker "
                "refuses it when it comes too late"
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
        dead = [
            number
            for number, opened in self._open.items()
            if not any(grant.epochs.get(tp) == epoch for tp, epoch in opened.chunk.epochs.items())
        ]
        for number in dead:
            opened = self._open.pop(number)
            flight = self._in_flight.pop(number)
            self._release(opened.chunk)
            if flight.trace is not None:
                flight.trace.drop()
        if dead:
            gone = frozenset(dead)
            self._batcher.drop(gone.__contains__)
        self._committed = {tp: offset for tp, offset in self._committed.items() if tp in grant.epochs}

    def _report(self) -> None:
        now = time.monotonic()
        if now - self._lag_at >= 1.0:
            self._lag_at = now
            self._telemetry.lag(self._source.lag(self._committed))
            self._telemetry.in_flight(self._records, self._bytes)


def _good_stretches(outputs: Sequence[Any]) -> list[tuple[int, int]]:
    """The stretches between what was rejected already."""
    bad = [place for place, output in enumerate(outputs) if output is not None]
    edges = [-1, *bad, len(outputs)]
    return [(left + 1, right) for left, right in zip(edges, edges[1:], strict=False) if left + 1 < right]
