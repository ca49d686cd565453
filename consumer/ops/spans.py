"""Spans as they lie in the trace topic, and what they tell of one event.  Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

__all__ = ["Batches", "Span", "Wanted", "of_event", "spans_in"]

_ERROR = 2


@dataclass(frozen=True, slots=True)
class Span:
    """One span; times in ns since the epoch, ids in hexadecimal."""

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    service: str
    start_ns: int
    end_ns: int
    attributes: Mapping[str, Any]
    links: Sequence[tuple[str, str]]
    """(trace id, span id)."""
    error: str

    @property
    def is_event(self) -> bool:
        """Whether it is the span of one event."""
        return "consumer.outcome" in self.attributes

    @property
    def is_batch(self) -> bool:
        """Whether it is the span of one device call."""
        return "consumer.batch.padded_tokens" in self.attributes

    @property
    def ms(self) -> float:
        return (self.end_ns - self.start_ns) / 1e6

    @property
    def event_id(self) -> str:
        return str(self.attributes.get("messaging.message.id", ""))

    @property
    def place(self) -> str:
        """Where the event lies: topic[partition]@offset."""
        topic, partition, offset = (
            self.attributes.get(name, "?")
            for name in (
                "messaging.destination.name",
                "messaging.destination.partition.id",
                "messaging.kafka.offset",
            )
        )
        return f"{topic}[{partition}]@{offset}"

    def number(self, name: str) -> float | None:
        """Attribute `name` where it is a number."""
        value = self.attributes.get(name)
        return float(value) if isinstance(value, int | float) else None


def spans_in(value: bytes | None) -> Iterator[Span]:
    """The spans of one record of the trace topic; none of one that is something else."""
    try:
        request = ExportTraceServiceRequest.FromString(value or b"")
    except DecodeError:
        return
    for group in request.resource_spans:
        service = str(_attributes(group.resource.attributes).get("service.name", ""))
        for scope in group.scope_spans:
            for span in scope.spans:
                yield Span(
                    trace_id=span.trace_id.hex(),
                    span_id=span.span_id.hex(),
                    parent_id=span.parent_span_id.hex(),
                    name=span.name,
                    service=service,
                    start_ns=span.start_time_unix_nano,
                    end_ns=span.end_time_unix_nano,
                    attributes=_attributes(span.attributes),
                    links=[(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
                    error=(span.status.message or "error") if span.status.code == _ERROR else "",
                )


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value") or "string_value") for pair in pairs}


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which spans of events are meant; what is not named does not count."""

    task: str = ""
    slow_ms: float = 0.0
    errors: bool = False
    event: str = ""
    trace: str = ""

    def takes(self, span: Span) -> bool:
        """Whether `span`, that of an event, is meant."""
        return (
            (not self.task or span.attributes.get("consumer.task") == self.task)
            and span.ms >= self.slow_ms
            and (not self.errors or bool(span.error))
            and self.event in ("", span.event_id, span.place)
            and self.trace in ("", span.trace_id)
        )


class Batches:
    """The latest spans of device calls, for those of the events in them, which end later."""

    def __init__(self, keep: int = 5_000) -> None:
        self._keep = keep
        self._spans: OrderedDict[str, Span] = OrderedDict()

    def add(self, span: Span) -> None:
        self._spans[span.span_id] = span
        if len(self._spans) > self._keep:
            self._spans.popitem(last=False)

    def of(self, span: Span) -> list[Span]:
        """Those of the device calls in which the event was: more than one where a failing batch was split."""
        return [self._spans[linked] for _, linked in span.links if linked in self._spans]


def of_event(spans: Sequence[Span], name: str) -> list[Span]:
    """Of `spans` those of events that `name` names: an event id, a trace id, or topic[partition]@offset."""
    return [span for span in spans if span.is_event and name in (span.event_id, span.trace_id, span.place)]
