"""Spans into a Kafka topic, as OTLP protobuf: what the OpenTelemetry Collector's Kafka receiver reads (`otlp_proto`).

For where no collector is.  Runs on the exporter's thread and never waits for room: a full queue, a full topic or a
missing one cost spans and nothing else.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from confluent_kafka import KafkaException, Producer
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

__all__ = ["SpanTopic"]

log = logging.getLogger(__name__)

_LOOK_AGAIN_S = 30.0
_CALL_S = 2.0
_SPANS = 100
"""In one record: with their links still far below the megabyte that topics take by default."""
_OURS = {
    "linger.ms": 100,
    "compression.type": "lz4",
    "queue.buffering.max.kbytes": 8_192,
    "message.timeout.ms": 15_000,
    "log_level": 0,
}


class SpanTopic(SpanExporter):
    """Sends spans to `topic`; drops them, with one log line, while it is not there."""

    def __init__(self, conf: Mapping[str, Any], topic: str) -> None:
        self._topic = topic
        self._conf = {**conf, **_OURS, "error_cb": lambda error: None}
        self._producer: Producer | None = None
        self._look_s = 0.0
        self._said = False
        self.dropped = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Hand the spans to the client; whether it took them all."""
        before = self.dropped
        if (producer := self._connected()) is None:
            self.dropped += len(spans)
            return SpanExportResult.FAILURE
        for begin in range(0, len(spans), _SPANS):
            some = spans[begin : begin + _SPANS]
            try:
                producer.produce(self._topic, encode_spans(some).SerializeToString())
            except (BufferError, KafkaException) as error:
                self._drop(len(some), str(error))
        producer.poll(0)
        return SpanExportResult.SUCCESS if self.dropped == before else SpanExportResult.FAILURE

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._producer is None or self._producer.flush(timeout_millis / 1000) == 0

    def shutdown(self) -> None:
        """Send what is left, for a moment."""
        self.force_flush(2_000)
        self._producer = None

    def _connected(self) -> Producer | None:
        """The producer, once the topic is there: sending to one that is not could make it."""
        if self._producer is not None or time.monotonic() < self._look_s:
            return self._producer
        try:
            producer = Producer(self._conf)
            if self._topic in producer.list_topics(timeout=_CALL_S).topics:
                self._producer = producer
                return producer
            why = "it does not exist (consumer topics create makes it)"
        except KafkaException as error:
            why = error.args[0].str()
        self._look_s = time.monotonic() + _LOOK_AGAIN_S
        self._drop(0, why)
        return None

    def _drop(self, count: int, why: str) -> None:
        self.dropped += count
        if not self._said:
            self._said = True
            log.info("spans do not go to topic %s for now: %s; nothing else suffers", self._topic, why)
