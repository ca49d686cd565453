"""Metrics as the two readers see them: names, labels, values."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader, NumberDataPoint
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from consumer.metrics import as_word
from consumer.telemetry import Telemetry

KAFKA = {"task": "spam", "messaging.system": "kafka", "messaging.consumer.group.name": "spam-group"}
Labels = Mapping[str, object]


@dataclass(frozen=True)
class FakeRecord:
    sent_ms: int

    def topic(self) -> str:
        return "emails"

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return 0

    def key(self) -> bytes | None:
        return None

    def value(self) -> bytes | None:
        return None

    def headers(self) -> None:
        return None

    def timestamp(self) -> tuple[int, int]:
        return (1, self.sent_ms)


class Meters:
    """Telemetry and what a reader of its metrics sees."""

    def __init__(self) -> None:
        self.reader = InMemoryMetricReader()
        self.telemetry = Telemetry("spam", "spam-group", readers=[self.reader])

    def points(self, name: str) -> list[NumberDataPoint | HistogramDataPoint]:
        data = self.reader.get_metrics_data()
        if data is None:
            return []
        metrics = [
            m for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics if m.name == name
        ]
        return [p for m in metrics for p in m.data.data_points]  # type: ignore[misc]

    def values(self, name: str) -> list[tuple[Labels, float]]:
        """Labels (less the task where it is alone) and value of each point of a counter or gauge."""
        found: list[tuple[Labels, float]] = []
        for point in self.points(name):
            assert isinstance(point, NumberDataPoint)
            labels = dict(point.attributes or {})
            assert labels.pop("task") == "spam"
            found.append((labels, point.value))
        return found

    def histogram(self, name: str) -> tuple[int, float]:
        """Count and sum of a histogram."""
        (point,) = self.points(name)
        assert isinstance(point, HistogramDataPoint)
        return point.count, point.sum


@pytest.fixture
def meters() -> Meters:
    return Meters()


def test_records_in_and_results_out_have_the_conventional_names(meters: Meters) -> None:
    meters.telemetry.polled(3, 300)
    meters.telemetry.polled(4, 400)
    meters.telemetry.published(6)
    kafka = {name: value for name, value in KAFKA.items() if name != "task"}
    assert meters.values("messaging.client.consumed.messages") == [(kafka, 7)]
    assert meters.values("messaging.client.sent.messages") == [(kafka, 6)]
    assert meters.values("consumer.consumed") == [({}, 700)]
    assert meters.histogram("consumer.chunk.size") == (2, 7)


def test_dead_letters_are_counted_by_reason_and_free_text_is_not_a_label(meters: Meters) -> None:
    meters.telemetry.dead("truncated", 2)
    meters.telemetry.dead("truncated")
    meters.telemetry.dead("Dear Bob, the password is swordfish")
    assert meters.values("consumer.dead_letters") == [({"reason": "truncated"}, 3), ({"reason": "other"}, 1)]


@pytest.mark.parametrize(
    ("reason", "word"),
    [("too_large", "too_large"), ("utf8", "utf8"), ("", "other"), ("Bad", "other"), ("a" * 41, "other")],
)
def test_reasons_are_short_words(reason: str, word: str) -> None:
    assert as_word(reason) == word


def test_batches_tell_why_they_closed_and_what_was_padding(meters: Meters) -> None:
    meters.telemetry.batch_closed("tokens", items=4, tokens=300, padded_tokens=400, wait_ms=20.0)
    meters.telemetry.batch_closed("age", items=1, tokens=90, padded_tokens=100, wait_ms=50.0)
    meters.telemetry.device_ran(250.0)
    assert meters.values("consumer.batches") == [({"reason": "tokens"}, 1), ({"reason": "age"}, 1)]
    assert meters.values("consumer.batch.tokens") == [({}, 390)]
    assert meters.values("consumer.batch.padded_tokens") == [({}, 500)]
    assert meters.histogram("consumer.batch.size") == (2, 5)
    assert meters.histogram("consumer.batch.wait") == (2, 0.07)
    assert meters.histogram("consumer.batch.run") == (1, 0.25)
    assert meters.values("consumer.device.busy") == [({}, 0.25)]


def test_transactions_and_rebalances_are_told_apart(meters: Meters) -> None:
    meters.telemetry.committed(12.0, 500)
    meters.telemetry.aborted("fenced")
    meters.telemetry.rebalanced("assigned", 6)
    meters.telemetry.rebalanced("revoked", 2)
    meters.telemetry.rebalanced("revoked", 1)
    assert meters.values("consumer.transactions.committed") == [({}, 1)]
    assert meters.values("consumer.transactions.aborted") == [({"reason": "fenced"}, 1)]
    assert meters.histogram("consumer.commit") == (1, 0.012)
    assert meters.histogram("consumer.transaction.size") == (1, 500)
    assert meters.values("consumer.rebalances") == [({"kind": "assigned"}, 1), ({"kind": "revoked"}, 2)]
    assert meters.values("consumer.rebalance.partitions") == [
        ({"kind": "assigned"}, 6),
        ({"kind": "revoked"}, 3),
    ]


def test_lag_is_that_of_the_partitions_that_are_ours_now(meters: Meters) -> None:
    meters.telemetry.lag({("emails", 0): 10, ("emails", 1): 20})
    assert [value for _, value in meters.values("consumer.lag")] == [10, 20]
    meters.telemetry.lag({("emails", 1): 5})
    assert meters.values("consumer.lag") == [
        (
            {
                "messaging.consumer.group.name": "spam-group",
                "messaging.destination.name": "emails",
                "messaging.destination.partition.id": "1",
            },
            5,
        )
    ]


def test_what_is_in_flight(meters: Meters) -> None:
    meters.telemetry.in_flight(10, 1000)
    meters.telemetry.in_flight(20, 3000)
    assert meters.values("consumer.in_flight") == [({}, 20)]
    assert meters.values("consumer.in_flight.size") == [({}, 3000)]


def test_latency_looks_at_a_few_records_of_a_large_chunk_and_at_all_of_a_small_one(meters: Meters) -> None:
    meters.telemetry.latency([FakeRecord(1000), FakeRecord(2000)], now_ms=3000)
    assert meters.histogram("consumer.latency") == (2, 3.0)
    meters.telemetry.latency([FakeRecord(2000)] * 1000, now_ms=3000)
    assert meters.histogram("consumer.latency") == (10, 11.0)


def test_latency_without_a_timestamp_or_with_one_of_the_future(meters: Meters) -> None:
    meters.telemetry.latency([], now_ms=3000)
    meters.telemetry.latency([FakeRecord(-1)], now_ms=3000)
    assert meters.points("consumer.latency") == []
    meters.telemetry.latency([FakeRecord(4000)], now_ms=3000)
    assert meters.histogram("consumer.latency") == (1, 0.0)


def test_counts_of_several_threads_add_up(meters: Meters) -> None:
    def count() -> None:
        for _ in range(5000):
            meters.telemetry.published(1)
            meters.telemetry.dead("truncated")

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [value for _, value in meters.values("messaging.client.sent.messages")] == [20_000]
    assert meters.values("consumer.dead_letters") == [({"reason": "truncated"}, 20_000)]


def test_the_page_that_prometheus_reads() -> None:
    registry = CollectorRegistry()
    reader = PrometheusMetricReader(scope_info_enabled=False, registry=registry)
    telemetry = Telemetry("spam", "spam-group", readers=[reader], registry=registry)
    telemetry.polled(3, 300)
    telemetry.dead("truncated", 2)
    telemetry.lag({("emails", 4): 10})
    telemetry.device_ran(500.0)
    for accept in ("", "application/openmetrics-text; version=1.0.0"):
        _, content_type = telemetry.page(accept)
        assert content_type.startswith("application/openmetrics-text" if accept else "text/plain")
    samples = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(telemetry.page()[0].decode())
        for sample in family.samples
    }
    task = ("task", "spam")
    group = ("messaging_consumer_group_name", "spam-group")
    where = (("messaging_destination_name", "emails"), ("messaging_destination_partition_id", "4"))
    assert (
        samples["messaging_client_consumed_messages_total", (group, ("messaging_system", "kafka"), task)] == 3
    )
    assert samples["consumer_dead_letters_total", (("reason", "truncated"), task)] == 2
    assert samples["consumer_lag", (group, *where, task)] == 10
    assert samples["consumer_device_busy_seconds_total", (task,)] == 0.5
    assert samples["consumer_consumed_bytes_total", (task,)] == 300


def test_scrapes_at_the_same_time_each_get_a_whole_page() -> None:
    registry = CollectorRegistry()
    reader = PrometheusMetricReader(scope_info_enabled=False, registry=registry)
    telemetry = Telemetry("spam", "spam-group", readers=[reader], registry=registry)
    telemetry.polled(3, 300)
    with ThreadPoolExecutor(4) as pool:
        pages = list(pool.map(lambda _: telemetry.page()[0].decode(), range(100)))
    types = [[line for line in page.splitlines() if line.startswith("# TYPE")] for page in pages]
    assert all(len(page) == len(set(page)) and page == types[0] for page in types)


def test_off_counts_nothing_and_every_call_works() -> None:
    off = Telemetry.off()
    off.polled(1, 1)
    off.dead("truncated")
    off.published(1)
    off.batch_closed("age", 1, 1, 1, 1.0)
    off.device_ran(1.0)
    off.committed(1.0, 1)
    off.aborted("fenced")
    off.rebalanced("lost", 1)
    off.lag({})
    off.in_flight(0, 0)
    off.latency([FakeRecord(1)], 2.0)
    off.unrecorded(1)
    off.shutdown(timeout_ms=1000)
    assert off.page()[0] == b""
