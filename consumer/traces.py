"""One trace per event through the batch: producer span -> ours -> the `traceparent` of the result.

Which records get a span is decided when they come (see `sampling`).  Dead letters get one whatever was decided, made
when they are committed, and so does the slowest record of every ten seconds.

A record that carries no trace costs nothing here.  An unsampled trace, or a sampled one when nobody collects
spans, is passed on untouched.  Only a sampled record gets a span of its own, and a batch that holds one gets a
span that links to it.  Spans carry ids, keys and numbers, never text or error messages.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextvars import Token
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.trace import Link, NonRecordingSpan, SpanKind, Status, StatusCode

from consumer.metrics import as_word
from consumer.records import Chunk, Headers, Record, TopicPartition
from consumer.sampling import Sampling
from consumer.traceparent import all_headers, carried, headers_of, span_context

__all__ = ["BatchTrace", "ChunkTrace", "Clock", "Ids", "Past", "Traces"]

MAX_LINKS = 128
MAX_SPANS_PER_S = 1000
MAX_ID_LENGTH = 200
MAX_KEY = 200
NO_REASONS: Mapping[int, str] = {}
SLOWEST_OF_NS = 10_000_000_000


@dataclass(frozen=True, slots=True)
class Clock:
    """`wall_ns` stamps spans, `monotonic_ns` measures."""

    wall_ns: Callable[[], int] = time.time_ns
    monotonic_ns: Callable[[], int] = time.monotonic_ns


@dataclass(frozen=True, slots=True)
class Past:
    """What became of a chunk that is committed; moments are `time.monotonic_ns()`."""

    reasons: Mapping[int, str]
    """Place -> why it became a dead letter."""
    silent: Collection[int]
    """Places for which the task had no result."""
    ids: Mapping[int, str]
    """Place -> event id, of some."""
    began_ns: int
    """When the first of it went to the device; 0 where nothing did."""
    done_ns: int
    commit_ns: int
    """How long its transaction took."""
    ended_ns: int


class Ids(IdGenerator):
    """Trace and span ids from a source of their own: a task that seeds `random` must not repeat them."""

    def __init__(self, seed: int | None = None) -> None:
        self._random = random.Random(seed)

    def generate_span_id(self) -> int:
        return self._random.getrandbits(64) or 1

    def generate_trace_id(self) -> int:
        return self._random.getrandbits(128) or 1

    def is_trace_id_random(self) -> bool:
        return True


class Traces:
    """Begins the spans of chunks and batches.  Without a tracer nobody collects spans: traces are passed on."""

    def __init__(
        self,
        tracer: trace.Tracer | None,
        sampling: Sampling,
        *,
        group: str,
        task: str,
        clock: Clock,
        unrecorded: Callable[[int], None],
        max_spans_per_s: int = MAX_SPANS_PER_S,
    ) -> None:
        self._tracer = tracer
        self._sampling = sampling
        self._group = group
        self._task = task
        self._clock = clock
        self._unrecorded = unrecorded
        self._max_spans_per_s = max_spans_per_s
        self._allowance = float(max_spans_per_s)
        self._refilled_ns = clock.monotonic_ns()
        self._version = ""
        self._slowest: tuple[Chunk, int, Past] | None = None
        self._slowest_since_ns = clock.monotonic_ns()

    def open(self, chunk: Chunk) -> ChunkTrace | None:
        """Loop thread: continue the traces of a chunk's records; None when there is none and none begins."""
        found = all_headers(chunk.records)
        count = len(found)
        if not any(found):
            if self._tracer is None:
                return None
            roots = self._sampling.choose(count)
            return self._record(chunk, [None] * count, roots) if roots else None
        passed: list[Headers | None] = [None] * count
        sampled: list[int] = []
        for index, headers in enumerate(found):
            if headers and (came_with := carried(headers)) is not None:
                passed[index] = came_with
                if self._tracer is not None and self._sampling.follows(came_with[0][1] or b""):
                    sampled.append(index)
        if self._tracer is not None:
            orphans = [i for i, came_with in enumerate(passed) if came_with is None]
            sampled += [orphans[i] for i in self._sampling.choose(len(orphans))]
        if sampled:
            return self._record(chunk, passed, sampled)
        return ChunkTrace(chunk, passed, {}, self._clock) if any(passed) else None

    def batch(
        self,
        members: Iterable[tuple[ChunkTrace, Sequence[int]]],
        *,
        number: int,
        reason: str,
        items: int,
        tokens: int,
        padded_tokens: int,
        device: str,
        model: str,
        version: str,
    ) -> BatchTrace:
        """Device thread: begin the span of one device call.

        `members` are the traced chunks with the indices of the records whose items are in the batch.
        Without a sampled record among them nothing is recorded.
        """
        spans: list[trace.Span] = []
        self._version = version
        now_ns = self._clock.monotonic_ns()
        for chunk, indices in members:
            waited_ms = (now_ns - chunk.received_ns) / 1e6
            for span in chunk.spans_at(indices):
                span.set_attributes(
                    {
                        "consumer.batch.number": number,
                        "consumer.batch.items": items,
                        "consumer.model_version": version,
                        "consumer.queue_wait_ms": waited_ms,
                    }
                )
                spans.append(span)
        if self._tracer is None or not spans:
            return NOTHING_TRACED
        links = [Link(span.get_span_context()) for span in spans[:MAX_LINKS]]
        span = self._tracer.start_span(
            f"run {self._task}",
            context=Context(),
            links=links,
            start_time=self._clock.wall_ns(),
            attributes={
                "messaging.system": "kafka",
                "messaging.operation.type": "process",
                "messaging.operation.name": "run",
                "messaging.consumer.group.name": self._group,
                "messaging.batch.message_count": items,
                "consumer.batch.number": number,
                "consumer.batch.reason": reason,
                "consumer.batch.tokens": tokens,
                "consumer.batch.padded_tokens": padded_tokens,
                "consumer.batch.traced": len(spans),
                "consumer.device": device,
                "consumer.model": model,
                "consumer.model_version": version,
            },
        )
        for member in spans:
            member.add_link(span.get_span_context())
        return BatchTrace(span, spans, self._clock)

    def keep(self, chunk: Chunk, past: Past, recorded: Collection[int] = ()) -> None:
        """Loop thread: spans, made afterwards, for what should be seen although nobody asked for it.

        `recorded` are the places of the chunk that have spans.
        """
        if self._tracer is None:
            return
        dead = [place for place in past.reasons if place not in recorded]
        if dead:
            allowed = self._allowed(len(dead))
            if allowed < len(dead):
                self._unrecorded(len(dead) - allowed)
            for place in dead[:allowed]:
                self._tell(chunk, place, past)
        self._weigh(chunk, past, recorded)

    def _weigh(self, chunk: Chunk, past: Past, recorded: Collection[int]) -> None:
        """Remember the slowest record, and tell of it when its ten seconds are over.  Bounded: it is one record."""
        if self._slowest is not None and past.ended_ns - self._slowest_since_ns >= SLOWEST_OF_NS:
            slowest, self._slowest = self._slowest, None
            self._slowest_since_ns = past.ended_ns
            if self._allowed(1):
                self._tell(*slowest)
        if 0 in recorded or 0 in past.reasons:
            return
        if self._slowest is None or past.ended_ns - chunk.received_ns > _took_ns(self._slowest):
            alone = replace(chunk, records=chunk.records[:1])  # of the others nothing is kept
            self._slowest = (alone, 0, replace(past, silent={0} & set(past.silent)))

    def _tell(self, chunk: Chunk, place: int, past: Past) -> None:
        """A whole span of something that is over."""
        wall_ns, now_ns = self._clock.wall_ns(), self._clock.monotonic_ns()
        record = chunk.records[place]
        span = self._begin(record, carried(record.headers() or []), wall_ns - (now_ns - chunk.received_ns))
        attributes: dict[str, str | float] = {
            "consumer.commit_ms": past.commit_ns / 1e6,
            "consumer.model_version": self._version,
        }
        if past.began_ns:
            attributes["consumer.queue_wait_ms"] = (past.began_ns - chunk.received_ns) / 1e6
            attributes["consumer.device_ms"] = (past.done_ns - past.began_ns) / 1e6
        if event_id := past.ids.get(place):
            attributes["messaging.message.id"] = event_id[:MAX_ID_LENGTH]
        span.set_attributes(attributes)
        _conclude(span, past.reasons.get(place), silent=place in past.silent)
        span.end(wall_ns - (now_ns - past.ended_ns))

    def _record(
        self, chunk: Chunk, passed: list[Headers | None], sampled: Sequence[int]
    ) -> ChunkTrace | None:
        """Begin spans for as many of the sampled records as the budget allows; the others stay as they came."""
        allowed = sorted(sampled)[: self._allowed(len(sampled))]
        if len(allowed) < len(sampled):
            self._unrecorded(len(sampled) - len(allowed))
        started_ns = self._clock.wall_ns() - (self._clock.monotonic_ns() - chunk.received_ns)
        spans: dict[int, trace.Span] = {}
        for index in allowed:
            span = self._begin(chunk.records[index], passed[index], started_ns)
            spans[index] = span
            passed[index] = headers_of(span.get_span_context(), passed[index])
        return ChunkTrace(chunk, passed, spans, self._clock) if any(passed) else None

    def _begin(self, record: Record, came_with: Headers | None, started_ns: int) -> trace.Span:
        assert self._tracer is not None
        around = Context()
        if came_with is not None:
            around = trace.set_span_in_context(NonRecordingSpan(span_context(came_with)), around)
        return self._tracer.start_span(
            f"process {record.topic()}",
            context=around,
            kind=SpanKind.CONSUMER,
            start_time=started_ns,
            attributes={
                "messaging.system": "kafka",
                "messaging.operation.type": "process",
                "messaging.operation.name": "process",
                "messaging.destination.name": record.topic(),
                "messaging.destination.partition.id": str(record.partition()),
                "messaging.kafka.offset": record.offset(),
                "messaging.consumer.group.name": self._group,
                "messaging.message.body.size": len(record.value() or b""),
                "consumer.task": self._task,
                **_about(record),
            },
        )

    def _allowed(self, wanted: int) -> int:
        now_ns = self._clock.monotonic_ns()
        refill = (now_ns - self._refilled_ns) / 1e9 * self._max_spans_per_s
        self._allowance = min(self._allowance + refill, float(self._max_spans_per_s))
        self._refilled_ns = now_ns
        allowed = min(wanted, int(self._allowance))
        self._allowance -= allowed
        return allowed


def _about(record: Record) -> dict[str, str | int]:
    """Key and moment of a record, where it has them."""
    kind, timestamp_ms = record.timestamp()
    key = record.key()
    return {
        **({} if key is None else {"messaging.kafka.message.key": key[:MAX_KEY].decode("utf-8", "replace")}),
        **({"consumer.event.timestamp_ms": timestamp_ms} if kind and timestamp_ms >= 0 else {}),
    }


def _conclude(span: trace.Span, rejected: str | None, *, silent: bool) -> None:
    """Say what became of the record."""
    if rejected is None:
        span.set_attribute("consumer.outcome", "no_result" if silent else "result")
        return
    reason = as_word(rejected)
    span.set_attributes({"consumer.outcome": "dead_letter", "error.type": reason})
    span.set_status(Status(StatusCode.ERROR, reason))


def _took_ns(told: tuple[Chunk, int, Past]) -> int:
    chunk, _, past = told
    return past.ended_ns - chunk.received_ns


class ChunkTrace:
    """The traces of one chunk's records, from poll to commit.

    `headers[i]` is what the result of record i must carry (traceparent, tracestate), None where nothing.
    """

    __slots__ = ("_clock", "_records", "_spans", "headers", "received_ns", "recorded")

    def __init__(
        self, chunk: Chunk, headers: Sequence[Headers | None], spans: dict[int, trace.Span], clock: Clock
    ) -> None:
        self.headers = headers
        self.received_ns = chunk.received_ns
        self._records = chunk.records
        self._spans = spans
        self._clock = clock
        self.recorded = frozenset(spans)
        """The places of the records that have spans."""

    def traceparent(self, index: int) -> str | None:
        """What the dead letter of record `index` must carry."""
        headers = self.headers[index]
        return None if headers is None else str(headers[0][1], "ascii") if headers[0][1] else None

    def spans_at(self, indices: Sequence[int]) -> list[trace.Span]:
        """The spans of those of the records that are sampled."""
        if not self._spans:
            return []
        return [span for index in indices if (span := self._spans.get(index)) is not None]

    def end(
        self,
        *,
        commit_ms: float,
        rejected: Mapping[int, str] = NO_REASONS,
        silent: Collection[int] = (),
        event_ids: Callable[[int], str | None] | None = None,
    ) -> None:
        """The chunk is committed: each sampled record ends as a result, or as said here.

        `rejected`: index -> reason of its dead letter.  `silent`: the task had no result for it.  `event_ids` gives
        the event's id by index; it is asked for sampled records only.
        """
        ended_ns = self._clock.wall_ns()
        for index, span in self._take(self._spans):
            span.set_attribute("consumer.commit_ms", commit_ms)
            if event_ids is not None and (event_id := event_ids(index)) is not None:
                span.set_attribute("messaging.message.id", event_id[:MAX_ID_LENGTH])
            _conclude(span, rejected.get(index), silent=index in silent)
            span.end(ended_ns)

    def drop(self, gone: Collection[TopicPartition] | None = None) -> None:
        """The work on these partitions (None: on all) is dropped; whoever has them now does it again."""
        lost = [
            index
            for index in self._spans
            if gone is None or (self._records[index].topic(), self._records[index].partition()) in gone
        ]
        ended_ns = self._clock.wall_ns()
        for _, span in self._take(lost):
            span.set_attribute("consumer.outcome", "dropped")
            span.end(ended_ns)

    def _take(self, indices: Iterable[int]) -> list[tuple[int, trace.Span]]:
        return [(index, self._spans.pop(index)) for index in list(indices)]


class BatchTrace:
    """The span of one device call.  As a context manager it is current inside: log lines carry its ids."""

    __slots__ = ("_clock", "_members", "_span", "_started_ns", "_token")

    def __init__(self, span: trace.Span | None, members: Sequence[trace.Span], clock: Clock) -> None:
        self._span = span
        self._members = members
        self._clock = clock
        self._started_ns = clock.monotonic_ns()
        self._token: Token[Context] | None = None

    def split(self, items: int, error: BaseException) -> None:
        """The call failed and goes on in halves of `items`."""
        if self._span is not None:
            self._span.add_event(
                "split",
                {"consumer.batch.items": items, "error.type": type(error).__name__},
                self._clock.wall_ns(),
            )

    def end(self, error: BaseException | None = None) -> None:
        """The call is over, for good or with `error`, of which only the type is told."""
        if self._span is None:
            return
        run_ms = (self._clock.monotonic_ns() - self._started_ns) / 1e6
        for member in self._members:
            if member.is_recording():
                member.set_attribute("consumer.device_ms", run_ms)
        if error is not None:
            self._span.set_attribute("error.type", type(error).__name__)
            self._span.set_status(Status(StatusCode.ERROR, type(error).__name__))
        self._span.end(self._clock.wall_ns())
        self._span = None

    def __enter__(self) -> Self:
        if self._span is not None:
            self._token = context.attach(trace.set_span_in_context(self._span))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace_back: TracebackType | None
    ) -> None:
        if self._token is not None:
            context.detach(self._token)
            self._token = None
        self.end(error)


NOTHING_TRACED = BatchTrace(None, (), Clock())
