"""Traces, seen as a collector sees them: exact spans from fixed ids and a fixed clock."""

from __future__ import annotations

import logging
import os
import random
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from consumer.errors import Fatal
from consumer.records import Chunk, Headers
from consumer.sampling import Sampling, sampling_from
from consumer.telemetry import ChunkTrace, Clock, Telemetry, current_trace
from consumer.traces import Ids, Past

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
SAMPLED: Headers = [("traceparent", f"00-{TRACE}-{PARENT}-01".encode()), ("tracestate", b"vendor=1")]
UNSAMPLED: Headers = [("traceparent", f"00-{TRACE}-{PARENT}-00".encode())]
SECRET = "dear bob, the password is swordfish"


@dataclass
class FakeRecord:
    fake_offset: int
    fake_headers: Headers | None = None
    fake_partition: int = 0
    reads: int = 0

    def topic(self) -> str:
        return "emails"

    def partition(self) -> int:
        return self.fake_partition

    def offset(self) -> int:
        return self.fake_offset

    def key(self) -> bytes:
        return b"bob@example.org"

    def value(self) -> bytes:
        return SECRET.encode()

    def headers(self) -> Headers | None:
        self.reads += 1
        return self.fake_headers

    def timestamp(self) -> tuple[int, int]:
        return (1, 1_000_000)


class Unreadable(FakeRecord):
    """As the client library does it: the first reading raises, a second one would crash the interpreter."""

    def headers(self) -> Headers | None:
        self.reads += 1
        assert self.reads == 1 or self.fake_headers == []
        if self.fake_headers is None:
            raise SystemError("returned a result with an exception set")
        return self.fake_headers

    def set_headers(self, headers: Headers) -> None:
        self.fake_headers = headers


@dataclass
class FakeClock:
    """Monotonic time in ms from 0; the wall clock runs 1,000,000 ms ahead."""

    now_ms: int = 0

    def clock(self) -> Clock:
        return Clock(lambda: (self.now_ms + 1_000_000) * 10**6, lambda: self.now_ms * 10**6)


@dataclass
class Bench:
    """Telemetry whose spans are at hand."""

    sampling: Sampling = field(default_factory=lambda: Sampling(0.0))
    exporter: InMemorySpanExporter = field(default_factory=InMemorySpanExporter)
    time: FakeClock = field(default_factory=FakeClock)

    def __post_init__(self) -> None:
        self.telemetry = Telemetry(
            "spam",
            "spam-group",
            spans=SimpleSpanProcessor(self.exporter),
            sampling=self.sampling,
            clock=self.time.clock(),
            ids=Ids(seed=1),
        )

    def open(self, *records: FakeRecord) -> ChunkTrace | None:
        return self.telemetry.open(chunk_of(*records, received_ms=self.time.now_ms))

    def opened(self, *records: FakeRecord) -> ChunkTrace:
        trace = self.open(*records)
        assert trace is not None
        return trace

    def batch(self, *members: tuple[ChunkTrace, range], items: int = 3) -> Any:
        return self.telemetry.batch(
            members,
            number=7,
            reason="items",
            items=items,
            tokens=30,
            padded_tokens=36,
            device="cpu",
            model="spam-mini",
            version="1.2",
        )

    def spans(self) -> list[dict[str, Any]]:
        return [plain(span) for span in self.exporter.get_finished_spans()]


def chunk_of(*records: FakeRecord, received_ms: int = 0) -> Chunk:
    return Chunk(1, records, {("emails", 0): 1}, {("emails", 0): 1}, 1, received_ms * 10**6)


def plain(span: ReadableSpan) -> dict[str, Any]:
    """A span as a value to compare: ids as they stand in headers, times in ms of the fake monotonic clock."""
    assert span.start_time is not None and span.end_time is not None
    return {
        "name": span.name,
        "kind": span.kind.name,
        "trace": f"{span.context.trace_id:032x}",
        "span": f"{span.context.span_id:016x}",
        "parent": None if span.parent is None else f"{span.parent.span_id:016x}",
        "ms": (span.start_time // 10**6 - 1_000_000, span.end_time // 10**6 - 1_000_000),
        "links": [f"{link.context.span_id:016x}" for link in span.links],
        "status": (span.status.status_code.name, span.status.description),
        "events": [(event.name, dict(event.attributes or {})) for event in span.events],
        "attributes": dict(span.attributes or {}),
    }


def test_one_trace_from_the_producer_through_the_batch_into_the_result() -> None:
    bench = Bench()
    bench.time.now_ms = 10
    chunk = bench.opened(FakeRecord(41), FakeRecord(42, SAMPLED), FakeRecord(43, UNSAMPLED))
    bench.time.now_ms = 15
    with bench.batch((chunk, range(3))):
        bench.time.now_ms = 35
    bench.time.now_ms = 40
    chunk.end(commit_ms=4.5, event_ids={0: "a", 1: "mail-42", 2: "c"}.get)

    run, process = bench.spans()
    assert process == {
        "name": "process emails",
        "kind": "CONSUMER",
        "trace": TRACE,
        "span": process["span"],
        "parent": PARENT,
        "ms": (10, 40),
        "links": [run["span"]],
        "status": ("UNSET", None),
        "events": [],
        "attributes": {
            "messaging.system": "kafka",
            "messaging.operation.type": "process",
            "messaging.operation.name": "process",
            "messaging.destination.name": "emails",
            "messaging.destination.partition.id": "0",
            "messaging.kafka.offset": 42,
            "messaging.consumer.group.name": "spam-group",
            "messaging.message.body.size": len(SECRET),
            "messaging.message.id": "mail-42",
            "messaging.kafka.message.key": "bob@example.org",
            "consumer.task": "spam",
            "consumer.event.timestamp_ms": 1_000_000,
            "consumer.model_version": "1.2",
            "consumer.batch.number": 7,
            "consumer.batch.items": 3,
            "consumer.queue_wait_ms": 5.0,
            "consumer.device_ms": 20.0,
            "consumer.commit_ms": 4.5,
            "consumer.outcome": "result",
        },
    }
    assert run == {
        "name": "run spam",
        "kind": "INTERNAL",
        "trace": run["trace"],
        "span": run["span"],
        "parent": None,
        "ms": (15, 35),
        "links": [process["span"]],
        "status": ("UNSET", None),
        "events": [],
        "attributes": {
            "messaging.system": "kafka",
            "messaging.operation.type": "process",
            "messaging.operation.name": "run",
            "messaging.consumer.group.name": "spam-group",
            "messaging.batch.message_count": 3,
            "consumer.batch.number": 7,
            "consumer.batch.reason": "items",
            "consumer.batch.tokens": 30,
            "consumer.batch.padded_tokens": 36,
            "consumer.batch.traced": 1,
            "consumer.device": "cpu",
            "consumer.model": "spam-mini",
            "consumer.model_version": "1.2",
        },
    }
    assert run["trace"] != TRACE
    ours = f"00-{TRACE}-{process['span']}-01"
    assert chunk.headers == [
        None,
        [("traceparent", ours.encode()), ("tracestate", b"vendor=1")],
        UNSAMPLED,
    ]
    assert [chunk.traceparent(i) for i in range(3)] == [None, ours, f"00-{TRACE}-{PARENT}-00"]


def test_a_span_begins_when_its_chunk_was_polled() -> None:
    bench = Bench()
    bench.time.now_ms = 25
    chunk = bench.telemetry.open(chunk_of(FakeRecord(1, SAMPLED), received_ms=10))
    assert chunk is not None
    chunk.end(commit_ms=1.0)
    assert [span["ms"] for span in bench.spans()] == [(10, 25)]


def test_a_dead_letter_fails_its_span_and_no_other() -> None:
    bench = Bench()
    chunk = bench.opened(*(FakeRecord(i, SAMPLED) for i in range(4)))
    chunk.end(commit_ms=1.0, rejected={1: "truncated", 2: SECRET}, silent={3})
    told = [
        (span["attributes"]["consumer.outcome"], span["attributes"].get("error.type"), span["status"])
        for span in bench.spans()
    ]
    assert told == [
        ("result", None, ("UNSET", None)),
        ("dead_letter", "truncated", ("ERROR", "truncated")),
        ("dead_letter", "other", ("ERROR", "other")),
        ("no_result", None, ("UNSET", None)),
    ]


def test_a_failed_batch_says_how_it_was_split_and_what_kind_of_error_but_not_its_text() -> None:
    bench = Bench()
    chunk = bench.opened(FakeRecord(1, SAMPLED))
    batch = bench.batch((chunk, range(1)))
    batch.split(2, RuntimeError(SECRET))
    with pytest.raises(ValueError, match="swordfish"), batch:
        raise ValueError(SECRET)
    (run,) = bench.spans()
    assert run["events"] == [("split", {"consumer.batch.items": 2, "error.type": "RuntimeError"})]
    assert run["status"] == ("ERROR", "ValueError") and run["attributes"]["error.type"] == "ValueError"


def test_no_text_of_an_event_gets_into_a_span() -> None:
    bench = Bench(Sampling(1.0))
    chunk = bench.opened(FakeRecord(1, [("subject", SECRET.encode())]), FakeRecord(2, SAMPLED))
    with pytest.raises(KeyError), bench.batch((chunk, range(2))):
        raise KeyError(SECRET)
    chunk.end(commit_ms=1.0, rejected={0: SECRET})
    assert len(bench.spans()) == 3
    assert "swordfish" not in repr(bench.spans())


def past(ended_ms: int, reasons: dict[int, str] | None = None, **more: Any) -> Past:
    ids = {0: "first", 1: "second"}
    return Past(reasons or {}, (), ids, 0, 0, 2_000_000, ended_ms * 10**6, **more)


def test_dead_letters_that_nobody_traces_get_a_span_all_the_same() -> None:
    bench = Bench()
    chunk = chunk_of(FakeRecord(1), FakeRecord(2, UNSAMPLED), FakeRecord(3), received_ms=10)
    assert bench.telemetry.open(chunk) is not None
    bench.time.now_ms = 50
    told = Past(
        {1: "truncated", 2: "bad_frame"}, (), {1: "second"}, 20 * 10**6, 30 * 10**6, 4_000_000, 45 * 10**6
    )
    bench.telemetry.keep(chunk, told, recorded={2})
    (span,) = bench.spans()
    assert (span["trace"], span["parent"], span["ms"]) == (TRACE, PARENT, (10, 45))
    assert span["status"] == ("ERROR", "truncated")
    attributes = span["attributes"]
    assert (attributes["consumer.outcome"], attributes["error.type"]) == ("dead_letter", "truncated")
    assert attributes["messaging.message.id"] == "second"
    times = [attributes[f"consumer.{name}_ms"] for name in ("queue_wait", "device", "commit")]
    assert times == [10.0, 10.0, 4.0]


def test_a_flood_of_dead_letters_stays_within_the_span_budget() -> None:
    bench = Bench()
    chunk = chunk_of(*map(FakeRecord, range(5_000)), received_ms=0)
    bench.telemetry.keep(chunk, past(1, dict.fromkeys(range(5_000), "bad_frame")))
    assert len(bench.spans()) == 1_000


def test_the_slowest_record_of_ten_seconds_is_told_of() -> None:
    bench = Bench()
    for offset, (received_ms, ended_ms) in enumerate([(0, 20), (100, 900), (1_000, 1_005), (11_000, 11_001)]):
        bench.time.now_ms = ended_ms
        bench.telemetry.keep(
            chunk_of(FakeRecord(offset), FakeRecord(99), received_ms=received_ms), past(ended_ms)
        )
    (span,) = bench.spans()
    assert span["attributes"]["messaging.kafka.offset"] == 1
    assert span["ms"] == (100, 900)
    assert span["attributes"]["consumer.outcome"] == "result"


def test_a_batch_links_to_128_spans_at_most() -> None:
    bench = Bench()
    one = bench.opened(*(FakeRecord(i, SAMPLED) for i in range(100)))
    two = bench.opened(*(FakeRecord(i, SAMPLED) for i in range(100)))
    bench.batch((one, range(50, 100)), (two, range(100))).end()
    (run,) = bench.spans()
    assert len(run["links"]) == 128
    assert run["attributes"]["consumer.batch.traced"] == 150
    two.drop()
    one.drop()
    in_batch = [span for span in bench.spans() if span["links"] == [run["span"]]]
    assert len(in_batch) == 150


def test_work_on_lost_partitions_ends_as_dropped_and_the_rest_goes_on() -> None:
    bench = Bench()
    chunk = bench.opened(FakeRecord(1, SAMPLED, 0), FakeRecord(2, SAMPLED, 1), FakeRecord(3, SAMPLED, 0))
    batch = bench.batch((chunk, range(3)))
    chunk.drop({("emails", 0)})
    batch.end()
    chunk.end(commit_ms=1.0)
    chunk.end(commit_ms=2.0)
    outcomes = [span["attributes"].get("consumer.outcome") for span in bench.spans()]
    assert outcomes == ["dropped", "dropped", None, "result"]


def test_a_batch_without_sampled_records_has_no_span() -> None:
    bench = Bench()
    chunk = bench.opened(FakeRecord(1, UNSAMPLED), FakeRecord(2, SAMPLED))
    with bench.batch((chunk, range(1))), bench.batch():
        assert current_trace() is None
    assert bench.spans() == []


@pytest.mark.parametrize("headers", [None, [], [("traceparent", None)], [("schema", b"1")]])
def test_a_chunk_without_traces_is_not_opened(headers: Headers | None) -> None:
    assert Bench().open(FakeRecord(1, headers), FakeRecord(2)) is None
    assert Telemetry.off().open(chunk_of(FakeRecord(1, headers))) is None


@pytest.mark.parametrize("headers", [SAMPLED, UNSAMPLED])
def test_without_a_collector_traces_are_passed_on_untouched(headers: Headers) -> None:
    telemetry = Telemetry("spam", "g", sampling=Sampling(1.0))
    chunk = telemetry.open(chunk_of(FakeRecord(1, [("schema", b"1"), *headers]), FakeRecord(2)))
    assert chunk is not None
    assert chunk.headers == [headers, None]
    chunk.end(commit_ms=1.0)
    chunk.drop()


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"garbage",
        f"00-{TRACE}-{PARENT}".encode(),
        f"00-{TRACE}-{PARENT}-0".encode(),
        f"00-{TRACE}-{PARENT}-01-more".encode(),
        f"00-{TRACE}-{PARENT}-01\n".encode(),
        f"ff-{TRACE}-{PARENT}-01".encode(),
        f"00-{TRACE.upper()}-{PARENT}-01".encode(),
        f"00-{'0' * 32}-{PARENT}-01".encode(),
        f"00-{TRACE}-{'0' * 16}-01".encode(),
        f"01-{TRACE}-{PARENT}-01-{'x' * 100}".encode(),
    ],
)
def test_a_malformed_traceparent_is_no_trace(value: bytes) -> None:
    assert Bench().open(FakeRecord(1, [("traceparent", value)])) is None


def test_headers_of_the_future_and_of_several_hops() -> None:
    future = f"01-{TRACE}-{PARENT}-01-more".encode()
    bench = Bench()
    chunk = bench.opened(
        FakeRecord(1, [("traceparent", future), ("tracestate", b"\xff=\xff")]),
        FakeRecord(2, [("traceparent", b"garbage"), *SAMPLED]),
        FakeRecord(3, [*UNSAMPLED, ("tracestate", b"x" * 2049)]),
    )
    chunk.end(commit_ms=1.0)
    assert [(span["trace"], span["parent"]) for span in bench.spans()] == [(TRACE, PARENT)] * 2
    assert chunk.headers[2] == UNSAMPLED


def test_a_record_whose_headers_cannot_be_read_costs_its_neighbours_nothing() -> None:
    records = [Unreadable(1), FakeRecord(2, UNSAMPLED), Unreadable(3), Unreadable(4), FakeRecord(5, SAMPLED)]
    bench = Bench()
    chunk = bench.opened(*records)
    assert chunk.headers[:4] == [None, UNSAMPLED, None, None]
    assert records[4].reads == 1
    chunk.end(commit_ms=1.0, rejected={0: "bad_headers"})
    assert [span["trace"] for span in bench.spans()] == [TRACE]
    assert records[0].headers() == []


def test_headers_are_read_once_a_record() -> None:
    records = [FakeRecord(1), FakeRecord(2, SAMPLED), FakeRecord(3, UNSAMPLED)]
    bench = Bench(Sampling(1.0))
    chunk = bench.opened(*records)
    bench.batch((chunk, range(3))).end()
    chunk.end(commit_ms=1.0)
    assert [record.reads for record in records] == [1, 1, 1]


def test_records_without_a_parent_begin_traces_at_the_sampled_share() -> None:
    bench = Bench(Sampling(0.05, seed=3))
    bench.time.now_ms = 1_000_000
    begun = 0
    for first in range(0, 20_000, 100):
        bench.time.now_ms += 1000
        chunk = bench.open(*(FakeRecord(i) for i in range(first, first + 100)))
        if chunk is not None:
            begun += sum(headers is not None for headers in chunk.headers)
            chunk.end(commit_ms=1.0)
    spans = bench.spans()
    assert len(spans) == begun and 900 <= begun <= 1100
    assert {span["parent"] for span in spans} == {None}
    assert len({span["trace"] for span in spans}) == begun


def test_a_new_trace_goes_on_in_its_result() -> None:
    bench = Bench(Sampling(1.0))
    chunk = bench.opened(FakeRecord(1), FakeRecord(2, UNSAMPLED))
    chunk.end(commit_ms=1.0)
    (span,) = bench.spans()
    assert chunk.headers[1] == UNSAMPLED
    parent = chunk.traceparent(0)
    assert parent is not None
    assert parent.split("-")[1:3] == [span["trace"], span["span"]] and int(parent[-2:], 16) & 1


def test_sampling_by_trace_id_alone_ignores_what_the_parent_says() -> None:
    low: Headers = [("traceparent", f"00-{'0' * 31}1-{PARENT}-00".encode())]
    high: Headers = [("traceparent", f"00-{'f' * 32}-{PARENT}-01".encode())]
    bench = Bench(Sampling(0.5, parent_based=False, seed=1))
    bench.opened(FakeRecord(1, low), FakeRecord(2, high)).end(commit_ms=1.0)
    assert [span["trace"] for span in bench.spans()] == ["0" * 31 + "1"]


def test_beyond_the_span_budget_traces_are_passed_on_without_a_span() -> None:
    bench = Bench()
    chunk = bench.opened(*(FakeRecord(i, SAMPLED) for i in range(1200)))
    chunk.end(commit_ms=1.0)
    assert len(bench.spans()) == 1000
    assert chunk.headers[1100] == SAMPLED
    bench.time.now_ms += 100
    bench.opened(*(FakeRecord(i, SAMPLED) for i in range(300))).end(commit_ms=1.0)
    assert len(bench.spans()) == 1100


def test_a_seeded_task_does_not_make_workers_share_trace_ids() -> None:
    random.seed(1)
    first = Ids().generate_trace_id()
    random.seed(1)
    assert Ids().generate_trace_id() != first


def test_the_span_of_a_batch_is_current_inside_and_only_there() -> None:
    bench = Bench()
    chunk = bench.opened(FakeRecord(1, SAMPLED))
    with bench.batch((chunk, range(1))):
        inside = current_trace()
    (run,) = bench.spans()
    assert inside == (run["trace"], run["span"])
    assert current_trace() is None


@pytest.mark.parametrize(
    ("sampler", "argument", "ratio", "parent_based"),
    [
        (None, None, 0.01, True),
        (None, "0.5", 0.5, True),
        ("parentbased_traceidratio", "0.2", 0.2, True),
        ("traceidratio", None, 1.0, False),
        ("always_on", None, 1.0, False),
        ("parentbased_always_on", None, 1.0, True),
        ("always_off", None, 0.0, False),
        ("parentbased_always_off", "ignored", 0.0, True),
    ],
)
def test_the_standard_sampler_settings(
    sampler: str | None, argument: str | None, ratio: float, parent_based: bool
) -> None:
    environ = {"OTEL_TRACES_SAMPLER": sampler, "OTEL_TRACES_SAMPLER_ARG": argument}
    sampling = sampling_from({name: value for name, value in environ.items() if value is not None})
    assert (sampling.ratio, sampling.parent_based) == (ratio, parent_based)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("OTEL_TRACES_SAMPLER", "xray", "always_on"),
        ("OTEL_TRACES_SAMPLER_ARG", "2", "between 0 and 1"),
        ("OTEL_TRACES_SAMPLER_ARG", "nan", "between 0 and 1"),
        ("OTEL_TRACES_SAMPLER_ARG", "few", "between 0 and 1"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "http/protobuf"),
        ("OTEL_TRACES_EXPORTER", "zipkin", "otlp or none"),
        ("OTEL_METRICS_EXPORTER", "statsd", "otlp or none"),
    ],
)
def test_settings_that_cannot_work_end_with_a_remedy(
    name: str, value: str, says: str, restored_logging: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv(name, value)
    with pytest.raises(Fatal, match=says):
        Telemetry.start("consumer", "spam", "g", prometheus=False)


def test_spans_and_metrics_reach_the_collector(
    collector: Collector, restored_logging: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    telemetry = Telemetry.start("my-consumer", "spam", "g")
    chunk = telemetry.open(chunk_of(FakeRecord(1, SAMPLED)))
    assert chunk is not None
    chunk.end(commit_ms=1.0)
    telemetry.polled(5, 100)
    assert b"messaging_client_consumed_messages_total" in telemetry.page()[0]
    telemetry.shutdown(timeout_ms=20_000)

    traces = ExportTraceServiceRequest.FromString(collector.bodies["/v1/traces"])
    (resource_spans,) = traces.resource_spans
    resource = {a.key: a.value.string_value for a in resource_spans.resource.attributes}
    assert resource["service.name"] == "my-consumer"
    assert resource["deployment.environment.name"] == "test"
    assert [s.name for s in resource_spans.scope_spans[0].spans] == ["process emails"]
    metrics = ExportMetricsServiceRequest.FromString(collector.bodies["/v1/metrics"])
    names = {m.name for m in metrics.resource_metrics[0].scope_metrics[0].metrics}
    assert "messaging.client.consumed.messages" in names


@pytest.mark.parametrize("switch", [("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none")])
def test_tracing_can_be_switched_off(
    switch: tuple[str, str], restored_logging: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "none")
    monkeypatch.setenv(*switch)
    telemetry = Telemetry.start("consumer", "spam", "g", prometheus=False)
    chunk = telemetry.open(chunk_of(FakeRecord(1, SAMPLED)))
    assert chunk is not None and chunk.headers == [SAMPLED]
    telemetry.shutdown(timeout_ms=1000)


def test_a_collector_that_does_not_answer_does_not_hold_up_the_exit(caplog: pytest.LogCaptureFixture) -> None:
    released = threading.Event()

    class Stuck(InMemorySpanExporter):
        def shutdown(self) -> None:
            released.wait(30)

    telemetry = Telemetry("spam", "g", spans=SimpleSpanProcessor(Stuck()))
    telemetry.shutdown(timeout_ms=50)
    released.set()
    assert "is the collector up?" in caplog.text


class Collector:
    """The HTTP half of an OpenTelemetry collector: keeps the last body of each path."""

    def __init__(self) -> None:
        self.bodies: dict[str, bytes] = {}
        bodies = self.bodies

        class Door(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = zlib.decompress(body, 31)
                bodies[self.path] = body
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Door)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def collector() -> Iterator[Collector]:
    running = Collector()
    thread = threading.Thread(target=running.server.serve_forever)
    thread.start()
    yield running
    running.server.shutdown()
    running.server.server_close()
    thread.join()


@pytest.fixture
def restored_logging(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No OTEL_* setting of the surroundings inside, logging as it was afterwards."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
