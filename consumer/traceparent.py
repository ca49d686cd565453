"""Trace headers on the wire (W3C Trace Context): found in a record, checked, passed on or replaced by ours."""

from __future__ import annotations

import re
from collections.abc import Sequence

from opentelemetry.trace import SpanContext, TraceFlags, TraceState

from consumer.records import Headers, Record

__all__ = ["all_headers", "carried", "headers_of", "span_context"]

MAX_TRACEPARENT_BYTES = 128
MAX_TRACESTATE_BYTES = 2048
TRACEPARENT = re.compile(
    rb"(?!ff|00.{54})[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?"
)


def all_headers(records: Sequence[Record]) -> Sequence[Headers | None]:
    """The headers of every record; None for one whose headers cannot be read, which has none from then on.

    Must be the first to read them.  Where a header's name is not UTF-8 the client library raises on the first
    reading and then keeps a list with a hole in it: looking at that one crashes the interpreter.
    """
    found: list[Headers | None] = []
    while len(found) < len(records):
        try:
            for record in records[len(found) :]:
                found.append(record.headers())  # noqa: PERF401  what was read before an error stays
        except Exception:
            _disarm(records[len(found)])
            found.append(None)
    return found


def carried(headers: Headers) -> Headers | None:
    """The valid trace headers among `headers`, traceparent first, as they came; the last of a name counts."""
    named = dict(headers)
    parent = named.get("traceparent")
    if not parent or len(parent) > MAX_TRACEPARENT_BYTES or TRACEPARENT.fullmatch(parent) is None:
        return None
    state = named.get("tracestate")
    if not state or len(state) > MAX_TRACESTATE_BYTES:
        return [("traceparent", parent)]
    return [("traceparent", parent), ("tracestate", state)]


def span_context(trace_headers: Headers) -> SpanContext:
    """The producer's span that `carried` headers speak of."""
    parent = trace_headers[0][1] or b""
    state = trace_headers[1][1] if len(trace_headers) > 1 else None
    return SpanContext(
        trace_id=int(parent[3:35], 16),
        span_id=int(parent[36:52], 16),
        is_remote=True,
        trace_flags=TraceFlags(int(parent[53:55], 16)),
        trace_state=TraceState.from_header([str(state, "ascii", "replace")]) if state else None,
    )


def headers_of(ours: SpanContext, came_with: Headers | None) -> Headers:
    """What a result carries so that its readers continue our span; a tracestate stays as it came."""
    parent = f"00-{ours.trace_id:032x}-{ours.span_id:016x}-{int(ours.trace_flags):02x}".encode()
    return [("traceparent", parent), *(came_with[1:] if came_with else ())]


def _disarm(record: Record) -> None:
    set_headers = getattr(record, "set_headers", None)
    if set_headers is not None:
        set_headers([])
