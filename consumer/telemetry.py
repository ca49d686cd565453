"""Telemetry of one worker: traces, metrics and logs behind one object.

OpenTelemetry's standard settings count:
- OTEL_EXPORTER_OTLP_ENDPOINT: a collector (OTLP over HTTP); without one spans go where the caller says, else nowhere
- OTEL_TRACES_SAMPLER, OTEL_TRACES_SAMPLER_ARG: which records without a trace begin one; by default 1 in 100
- OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES: who we are
- OTEL_TRACES_EXPORTER, OTEL_METRICS_EXPORTER: `none` switches one off; OTEL_SDK_DISABLED=true switches off both
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence

from opentelemetry import trace
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import Meter, NoOpMeterProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder

from consumer import logs
from consumer.errors import Fatal
from consumer.metrics import Metrics
from consumer.sampling import DEFAULT_ROOT_RATIO, Sampling, sampling_from
from consumer.traces import BatchTrace, ChunkTrace, Clock, Ids, Past, Traces

__all__ = ["BatchTrace", "ChunkTrace", "Clock", "Past", "Telemetry"]

log = logging.getLogger(__name__)

_SPANS_EVERY_MS = 500
"""People watch the topic of spans live."""


class Telemetry(Metrics):
    """What the worker tells of itself: `open` and `batch` trace (see `Traces`), the rest counts (see `Metrics`).

    Costs per chunk, batch and transaction; a single record costs only where it carries a trace.
    """

    def __init__(
        self,
        task: str,
        group: str,
        *,
        resource: Resource | None = None,
        spans: SpanProcessor | None = None,
        readers: Sequence[MetricReader] = (),
        sampling: Sampling | None = None,
        clock: Clock | None = None,
        ids: Ids | None = None,
        registry: CollectorRegistry | None = None,
    ) -> None:
        self._registry = registry
        self._stops: list[Callable[[], object]] = []
        resource = resource or Resource.get_empty()
        super().__init__(self._meter(readers, resource), task=task, group=group)
        traces = Traces(
            None if spans is None else self._tracer(spans, resource, ids or Ids()),
            sampling or Sampling(DEFAULT_ROOT_RATIO),
            group=group,
            task=task,
            clock=clock or Clock(),
            unrecorded=self.unrecorded,
        )
        self.open = traces.open
        self.batch = traces.batch
        self.keep = traces.keep

    @classmethod
    def start(
        cls,
        service_name: str,
        task: str,
        group: str,
        *,
        prometheus: bool = True,
        log_format: logs.LogFormat = "auto",
        log_level: str = "INFO",
        otherwise: SpanExporter | None = None,
    ) -> Telemetry:
        """Set up logs for the process and exporters as the environment says; `prometheus` feeds `page`.

        `otherwise` takes the spans where no endpoint is configured.  Raises Fatal for settings that cannot work.
        """
        logs.configure(current_trace, log_format=log_format, level=log_level)
        sampling = sampling_from(os.environ)
        resource = _resource(service_name, task)
        registry = CollectorRegistry() if prometheus else None
        readers: list[MetricReader] = []
        if registry is not None:
            ProcessCollector(registry=registry)
            readers.append(PrometheusMetricReader(scope_info_enabled=False, registry=registry))
        spans: SpanProcessor | None = None
        if _wanted("TRACES", os.environ):
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

            spans = BatchSpanProcessor(OTLPSpanExporter())
        elif otherwise is not None and not _switched_off("TRACES", os.environ):
            spans = BatchSpanProcessor(otherwise, schedule_delay_millis=_SPANS_EVERY_MS)
        if _wanted("METRICS", os.environ):
            from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter

            readers.append(PeriodicExportingMetricReader(OTLPMetricExporter()))
        return cls(
            task, group, resource=resource, spans=spans, readers=readers, sampling=sampling, registry=registry
        )

    @classmethod
    def off(cls) -> Telemetry:
        """Counts nothing and records nothing; traces are still passed on.  For tests of other parts."""
        return cls("none", "none")

    def page(self, accept: str = "") -> tuple[bytes, str]:
        """The metrics for a Prometheus scrape that accepts `accept`: body and content type."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry or CollectorRegistry()), content_type

    def shutdown(self, timeout_ms: int) -> None:
        """Send what is left, for at most `timeout_ms`: a collector that is away must not hold up the exit."""

        def stop() -> None:
            for each in self._stops:
                each()

        stopper = threading.Thread(target=stop, name="telemetry-shutdown", daemon=True)
        stopper.start()
        stopper.join(timeout_ms / 1000.0)
        if stopper.is_alive():
            log.warning("telemetry not sent within %d ms is lost; is the collector up?", timeout_ms)

    def _meter(self, readers: Sequence[MetricReader], resource: Resource) -> Meter:
        if not readers:
            return NoOpMeterProvider().get_meter("consumer")
        provider = MeterProvider(readers, resource, shutdown_on_exit=False)
        self._stops.append(provider.shutdown)
        return provider.get_meter("consumer")

    def _tracer(self, spans: SpanProcessor, resource: Resource, ids: Ids) -> trace.Tracer:
        provider = TracerProvider(ALWAYS_ON, resource, shutdown_on_exit=False, id_generator=ids)
        provider.add_span_processor(spans)
        self._stops.append(provider.shutdown)
        return provider.get_tracer("consumer")


def current_trace() -> tuple[str, str] | None:
    """(trace id, span id) of the current span of this thread, None where there is none."""
    ours = trace.get_current_span().get_span_context()
    return (f"{ours.trace_id:032x}", f"{ours.span_id:016x}") if ours.is_valid else None


def _resource(service_name: str, task: str) -> Resource:
    """What the environment says comes before our own name."""
    named = os.environ.get("OTEL_SERVICE_NAME") or "service.name=" in os.environ.get(
        "OTEL_RESOURCE_ATTRIBUTES", ""
    )
    return Resource.create({"consumer.task": task} | ({} if named else {"service.name": service_name}))


def _wanted(signal: str, environ: Mapping[str, str]) -> bool:
    """Whether an endpoint is configured for `signal` (TRACES, METRICS) and nothing switches it off."""

    def setting(name: str) -> str:
        """The signal's own setting before the common one."""
        return environ.get(f"OTEL_EXPORTER_OTLP_{signal}_{name}") or environ.get(
            f"OTEL_EXPORTER_OTLP_{name}", ""
        )

    if _switched_off(signal, environ) or not setting("ENDPOINT"):
        return False
    protocol = setting("PROTOCOL")
    if protocol not in ("", "http/protobuf"):
        raise Fatal(
            f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol!r}, but only http/protobuf is installed:"
            " set it to http/protobuf and point the endpoint at the collector's HTTP port (4318)"
        )
    return True


def _switched_off(signal: str, environ: Mapping[str, str]) -> bool:
    exporter = environ.get(f"OTEL_{signal}_EXPORTER", "").strip() or "otlp"
    if exporter not in ("otlp", "none"):
        raise Fatal(f"OTEL_{signal}_EXPORTER is {exporter!r}, which is not supported: use otlp or none")
    return exporter == "none" or environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
