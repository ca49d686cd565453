"""One trace per event through the worker: producer's span -> ours -> the result's `traceparent`; the batch links."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.broker.rig import FAULTY, Rig, click, header, score


class Collector:
    """Takes OTLP over HTTP and keeps the spans."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                if self.path == "/v1/traces":
                    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                        for scope in resource.scope_spans:
                            collector.spans.extend(scope.spans)
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def collector() -> Iterator[Collector]:
    server = Collector()
    yield server
    server.close()


TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
DEAD_TRACE = "1bf7651916cd43dd8448eb211c80319d"
UNSAMPLED = b"00-2cf7651916cd43dd8448eb211c80319e-c7ad6b7169203332-00"
STATE = ("tracestate", b"vendor=opaque")


def test_a_trace_goes_through_the_worker(
    bootstrap_servers: str, unique_name: Callable[[str], str], tmp_path: Path, collector: Collector
) -> None:
    rig = Rig(bootstrap_servers, unique_name("trace"), tmp_path)
    try:
        rig.create()
        sampled = [("traceparent", f"00-{TRACE}-{PARENT}-01".encode()), STATE]
        dead = [("traceparent", f"00-{DEAD_TRACE}-{PARENT}-01".encode())]
        rig.send([click("sampled")], headers=sampled)
        rig.send([click("unsampled")], headers=[("traceparent", UNSAMPLED), STATE])
        rig.send([click("untraced")])
        rig.send([click("broken trace")], headers=[("traceparent", b"nonsense")])
        rig.send([click("dead", "raise:run")], headers=dead)
        tail = rig.tail()
        worker = rig.worker(
            FAULTY,
            OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint,
            OTEL_TRACES_SAMPLER="parentbased_always_off",
        )
        tail.count(5, alive=worker)
        assert worker.stop() == 0
        letters = tail.of(rig.dead)
        results = {score(m.value())["event_id"]: dict(m.headers() or []) for m in tail.of(rig.out)}
        assert "nothing" not in worker.said()
        places = {score(m.value())["event_id"]: score(m.value())["source_offset"] for m in tail.of(rig.out)}
    finally:
        rig.close()

    process = {s.trace_id.hex(): s for s in collector.spans if s.name == f"process {rig.source}"}
    assert process.keys() == {TRACE, DEAD_TRACE}
    ours = process[TRACE]
    assert ours.parent_span_id.hex() == PARENT
    assert ours.kind == Span.SPAN_KIND_CONSUMER
    said = {a.key: a.value for a in ours.attributes}
    assert said["messaging.destination.name"].string_value == rig.source
    assert said["messaging.kafka.offset"].int_value == places["sampled"]
    assert said["consumer.outcome"].string_value == "result"
    assert said["messaging.message.id"].string_value == "sampled"

    assert results["sampled"] == {
        "traceparent": f"00-{TRACE}-{ours.span_id.hex()}-01".encode(),
        "tracestate": b"vendor=opaque",
    }
    assert results["unsampled"] == {"traceparent": UNSAMPLED, "tracestate": b"vendor=opaque"}
    assert results["untraced"] == results["broken trace"] == {}

    (letter,) = letters
    lost = process[DEAD_TRACE]
    assert dict(letter.headers() or [])["traceparent"] == dead[0][1], "what came stays as it came"
    assert header(letter, "traceparent") == f"00-{DEAD_TRACE}-{lost.span_id.hex()}-01"
    assert {a.key: a.value.string_value for a in lost.attributes}["consumer.outcome"] == "dead_letter"

    batches = [s for s in collector.spans if s.name == "run faulty"]
    linked = {(link.trace_id, link.span_id) for batch in batches for link in batch.links}
    assert {(ours.trace_id, ours.span_id), (lost.trace_id, lost.span_id)} == linked
    back = {(link.trace_id, link.span_id) for link in ours.links}
    assert back <= {(batch.trace_id, batch.span_id) for batch in batches} and back
    assert all(not batch.parent_span_id for batch in batches)
