"""What spans say, in lines for people: one line an event, its tree, its life."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from consumer.ops.spans import Span

__all__ = ["HEADING", "as_document", "life", "line", "tree"]

_COLUMNS = "{:<12}  {:<9}  {:<24}  {:>9}  {:>9}  {:>9}  {:>9}  {}"
HEADING = _COLUMNS.format("ended (UTC)", "task", "outcome", "total", "wait", "device", "commit", "event")


def line(span: Span) -> str:
    """When it ended, what became of it, how long it took in all and waiting, on the device, committing; the event."""
    return _COLUMNS.format(
        _clock(span.end_ns),
        str(span.attributes.get("consumer.task", "")),
        _outcome(span),
        _ms(span.ms),
        _ms(span.number("consumer.queue_wait_ms")),
        _ms(span.number("consumer.device_ms")),
        _ms(span.number("consumer.commit_ms")),
        span.event_id or span.place,
    )


def tree(span: Span, batches: Sequence[Span], others: Sequence[Span] = ()) -> Iterator[str]:
    """The spans of its trace (`others`, as far as they are known), its own, and the device calls it was in."""
    parents = {each.span_id: each for each in others}
    above: list[Span] = []
    at = span
    while (parent := parents.get(at.parent_id)) is not None and parent not in above:
        above.insert(0, parent)
        at = parent
    for depth, each in enumerate(above):
        yield f"{'   ' * depth}{each.name} ({each.service}) {_ms(each.ms)}"
    depth = len(above)
    remote = f", child of {span.parent_id}" if span.parent_id and not above else ""
    yield f"{'   ' * depth}{span.name} {_ms(span.ms)}: {_outcome(span)} (trace {span.trace_id}{remote})"
    for batch in batches:
        a = batch.attributes
        yield (
            f"{'   ' * (depth + 1)}~ {batch.name} {_ms(batch.ms)} on {a.get('consumer.device')}: "
            f"batch {a.get('consumer.batch.number')} of {a.get('messaging.batch.message_count')} items, "
            f"{_padding(batch)} padding, closed by {a.get('consumer.batch.reason')}"
            + (f", {batch.error}" if batch.error else "")
        )
    for each in others:
        if each.parent_id == span.span_id:
            yield f"{'   ' * (depth + 1)}{each.name} ({each.service}) {_ms(each.ms)}"


def life(span: Span, batches: Sequence[Span], others: Sequence[Span]) -> Iterator[tuple[str, str]]:
    """(what, when or which) of one event, from its producer to its outcome."""
    a = span.attributes
    yield (
        "event",
        f"{span.event_id or '(no id)'} at {span.place}" + (f", key {key}" if (key := _key(span)) else ""),
    )
    yield "trace", f"{span.trace_id}, span {span.span_id}"
    if (sent := span.number("consumer.event.timestamp_ms")) is not None:
        yield "produced", _moment(int(sent * 1e6))
    yield "read", f"{_moment(span.start_ns)} by {a.get('messaging.consumer.group.name')}"
    for batch in batches:
        b = batch.attributes
        yield (
            "ran",
            f"{_moment(batch.start_ns)} on {b.get('consumer.device')}, after waiting "
            f"{_ms(span.number('consumer.queue_wait_ms'))}; batch {b.get('consumer.batch.number')} of "
            f"{b.get('messaging.batch.message_count')} items ({_padding(batch)} padding, closed by "
            f"{b.get('consumer.batch.reason')}) took {_ms(batch.ms)}",
        )
        yield "model", f"{b.get('consumer.model')} {b.get('consumer.model_version')}"
        company = [
            each.event_id or each.place
            for each in others
            if each.is_event and each != span and batch.span_id in {linked for _, linked in each.links}
        ]
        if company:
            more = f" and {len(company) - 5} more" if len(company) > 5 else ""
            yield "together with", f"{', '.join(company[:5])}{more} (those that are traced)"
    if a.get("consumer.outcome") == "dropped":
        yield "dropped", f"{_moment(span.end_ns)}: its partition went to another worker, which does it again"
        return
    commit = _ms(span.number("consumer.commit_ms"))
    yield "committed", f"{_moment(span.end_ns)}, transaction of {commit}; {_ms(span.ms)} after it was read"
    yield "outcome", _outcome(span)


def as_document(span: Span, batches: Sequence[Span]) -> dict[str, Any]:
    """The same as JSON can say it."""
    return {
        "event": span.event_id,
        "place": span.place,
        "task": span.attributes.get("consumer.task"),
        "outcome": span.attributes.get("consumer.outcome"),
        "reason": span.attributes.get("error.type"),
        "trace_id": span.trace_id,
        "span_id": span.span_id,
        "start_ns": span.start_ns,
        "end_ns": span.end_ns,
        "total_ms": span.ms,
        "wait_ms": span.number("consumer.queue_wait_ms"),
        "device_ms": span.number("consumer.device_ms"),
        "commit_ms": span.number("consumer.commit_ms"),
        "batches": [dict(batch.attributes) for batch in batches],
    }


def _key(span: Span) -> str:
    return str(span.attributes.get("messaging.kafka.message.key", ""))


def _outcome(span: Span) -> str:
    outcome = str(span.attributes.get("consumer.outcome", "?"))
    return f"dead letter: {span.error}" if outcome == "dead_letter" else outcome.replace("_", " ")


def _padding(batch: Span) -> str:
    tokens, padded = batch.number("consumer.batch.tokens"), batch.number("consumer.batch.padded_tokens")
    return f"{1 - tokens / padded:.0%}" if tokens is not None and padded else "0%"


def _ms(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value / 1000:.2f} s" if value >= 1000 else f"{value:.1f} ms"


def _clock(ns: int) -> str:
    return datetime.fromtimestamp(ns / 1e9, UTC).strftime("%H:%M:%S.%f")[:-3]


def _moment(ns: int) -> str:
    return datetime.fromtimestamp(ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3] + " UTC"
