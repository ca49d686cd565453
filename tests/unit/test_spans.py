"""Spans read back from their topic, and what is said of them."""

from __future__ import annotations

from typing import Any

import pytest
from confluent_kafka import Producer
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Link, Status, StatusCode

from consumer.ops.spans import Batches, Span, Wanted, of_event, spans_in
from consumer.ops.story import HEADING, life, line, tree
from consumer.span_topic import SpanTopic

MS = 10**6
START = 1_700_000_000_000 * MS


def recorded() -> list[Span]:
    """A batch and the two events in it, one of them a dead letter, through the wire."""
    memory = InMemorySpanExporter()
    provider = TracerProvider(resource=Resource.create({"service.name": "test"}), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(memory))
    tracer = provider.get_tracer("test")
    batch = tracer.start_span(
        "run spam",
        start_time=START + 5 * MS,
        attributes={
            "consumer.batch.number": 7,
            "consumer.batch.reason": "age",
            "consumer.batch.tokens": 75,
            "consumer.batch.padded_tokens": 100,
            "messaging.batch.message_count": 2,
            "consumer.device": "cpu",
            "consumer.model": "spam",
            "consumer.model_version": "1.2",
        },
    )
    for number, outcome in enumerate(("result", "dead_letter")):
        about: dict[str, Any] = {
            "consumer.task": "spam",
            "consumer.outcome": outcome,
            "messaging.message.id": f"mail-{number}",
            "messaging.destination.name": "emails",
            "messaging.destination.partition.id": "3",
            "messaging.kafka.offset": number,
            "consumer.queue_wait_ms": 5.0,
            "consumer.device_ms": 20.0,
            "consumer.commit_ms": 4.5,
        }
        event = tracer.start_span(
            "process emails", links=[Link(batch.get_span_context())], start_time=START, attributes=about
        )
        if outcome == "dead_letter":
            event.set_status(Status(StatusCode.ERROR, "run_failed"))
        event.end(START + (40 + 1000 * number) * MS)
    batch.end(START + 25 * MS)
    return list(spans_in(encode_spans(memory.get_finished_spans()).SerializeToString()))


def test_a_line_says_when_what_and_how_long() -> None:
    good, bad, _ = recorded()
    assert line(good).split("  ") != []
    words = " ".join(line(good).split())
    assert words == "22:13:20.040 spam result 40.0 ms 5.0 ms 20.0 ms 4.5 ms mail-0"
    assert "dead letter: run_failed" in line(bad)
    assert "1.04 s" in line(bad)
    assert HEADING.index("event") == line(good).index("mail-0")


def test_a_life_tells_with_whom_an_event_was_batched() -> None:
    spans = recorded()
    batches = Batches()
    batches.add(next(span for span in spans if span.is_batch))
    (found,) = of_event(spans, "mail-1")
    story = dict(life(found, batches.of(found), spans))
    assert story["event"] == "mail-1 at emails[3]@1"
    assert story["model"] == "spam 1.2"
    assert "mail-0" in story["together with"]
    assert "25% padding" in story["ran"]
    assert story["outcome"] == "dead letter: run_failed"
    assert of_event(spans, "emails[3]@1") == [found] == of_event(spans, found.trace_id)
    lines = list(tree(found, batches.of(found), spans))
    assert lines[0].startswith("process emails 1.04 s: dead letter: run_failed")
    assert lines[1].startswith("   ~ run spam 20.0 ms on cpu: batch 7 of 2 items")


@pytest.mark.parametrize(
    ("wanted", "ids"),
    [
        (Wanted(), ["mail-0", "mail-1"]),
        (Wanted(task="discount"), []),
        (Wanted(slow_ms=200), ["mail-1"]),
        (Wanted(errors=True), ["mail-1"]),
        (Wanted(event="mail-0"), ["mail-0"]),
        (Wanted(event="emails[3]@0"), ["mail-0"]),
        (Wanted(trace="0" * 32), []),
    ],
)
def test_what_is_not_wanted_is_left_out(wanted: Wanted, ids: list[str]) -> None:
    assert [span.event_id for span in recorded() if span.is_event and wanted.takes(span)] == ids


def test_only_the_latest_batches_are_remembered() -> None:
    span = next(span for span in recorded() if span.is_batch)
    batches = Batches(keep=0)
    batches.add(span)
    assert batches.of(recorded()[0]) == []


def test_what_is_no_span_is_passed_over() -> None:
    assert list(spans_in(None)) == list(spans_in(b"\xff\xff not protobuf")) == []


def test_without_brokers_or_topic_spans_are_dropped_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("consumer.span_topic._CALL_S", 0.1)
    exporter = SpanTopic({"bootstrap.servers": "127.0.0.1:1"}, "otlp_spans")
    made: list[object] = []

    def counted(conf: Any) -> Producer:
        made.append(conf)
        return Producer(conf)

    monkeypatch.setattr("consumer.span_topic.Producer", counted)
    spans: Any = [object()] * 3
    assert exporter.export(spans) is SpanExportResult.FAILURE
    assert exporter.export(spans) is SpanExportResult.FAILURE
    assert (exporter.dropped, len(made)) == (6, 1), "it does not look for its topic each time"
    assert exporter.force_flush()
