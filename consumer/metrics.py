"""What is counted and measured.  One call a chunk, a batch or a transaction, never a record.

Shares are ratios of counters: device busy share is `rate(consumer_device_busy_seconds_total)`, padding share
`1 - rate(consumer_batch_tokens_total) / rate(consumer_batch_padded_tokens_total)`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from consumer.records import Record, TopicPartition

__all__ = ["Metrics", "as_word"]

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5, 5.0, 10.0, 30.0, 60.0)
LATENCY_SECONDS = (*SECONDS, 300.0, 1800.0, 3600.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
MAX_LATENCY_SAMPLES = 16
WORD = re.compile(r"[a-z][a-z0-9_]{0,39}")


def as_word(reason: str) -> str:
    """`reason` where it is a short stable word, else `other`: a task's free text must not become a label."""
    return reason if WORD.fullmatch(reason) else "other"


class Metrics:
    """The instruments of one worker.  Every method may be called on any thread."""

    def __init__(self, meter: Meter, *, task: str, group: str) -> None:
        self._labels = {"task": task}
        self._group = {"task": task, "messaging.consumer.group.name": group}
        self._kafka = {"task": task, "messaging.system": "kafka", "messaging.consumer.group.name": group}
        self._lag: Mapping[TopicPartition, int] = {}
        self._in_flight = (0, 0)

        def count(name: str, unit: str, text: str) -> Any:
            return meter.create_counter(name, unit, text)

        def measure(name: str, unit: str, text: str, bounds: Sequence[float]) -> Any:
            return meter.create_histogram(name, unit, text, explicit_bucket_boundaries_advisory=bounds)

        self._consumed = count("messaging.client.consumed.messages", "{message}", "records read")
        self._consumed_bytes = count("consumer.consumed", "By", "keys and values read")
        self._sent = count("messaging.client.sent.messages", "{message}", "results committed")
        self._dead = count("consumer.dead_letters", "{record}", "dead letters by reason")
        self._batches = count("consumer.batches", "{batch}", "batches by closing reason")
        self._tokens = count("consumer.batch.tokens", "{token}", "tokens that carry something")
        self._padded = count("consumer.batch.padded_tokens", "{token}", "tokens computed, padding included")
        self._busy = count("consumer.device.busy", "s", "time the device worked")
        self._transactions = count("consumer.transactions", "{transaction}", "transactions by outcome")
        self._rebalances = count("consumer.rebalances", "{rebalance}", "rebalances by kind")
        self._moved = count("consumer.rebalance.partitions", "{partition}", "partitions moved by kind")
        self._passed = count("consumer.traces.unrecorded", "{record}", "sampled records without a span")
        self._chunk_size = measure("consumer.chunk.size", "{record}", "records in a chunk", SIZES)
        self._batch_size = measure("consumer.batch.size", "{item}", "items in a batch", SIZES)
        self._waited = measure("consumer.batch.wait", "s", "age of its oldest item", SECONDS)
        self._ran = measure("consumer.batch.run", "s", "time of one device call", SECONDS)
        self._commit = measure("consumer.commit", "s", "begin to end of one transaction", SECONDS)
        self._commit_size = measure("consumer.transaction.size", "{record}", "its records", SIZES)
        self._latency = measure("consumer.latency", "s", "record to committed result", LATENCY_SECONDS)
        meter.create_observable_gauge("consumer.lag", [self._observe_lag], "{record}", "records to go")
        meter.create_observable_gauge(
            "consumer.in_flight", [self._observe_in_flight], "{record}", "records read and not yet committed"
        )
        meter.create_observable_gauge(
            "consumer.in_flight.size",
            [self._observe_in_flight_bytes],
            "By",
            "bytes read and not yet committed",
        )

    def polled(self, records: int, nbytes: int) -> None:
        """One chunk was read."""
        self._consumed.add(records, self._kafka)
        self._consumed_bytes.add(nbytes, self._labels)
        self._chunk_size.record(records, self._labels)

    def dead(self, reason: str, records: int = 1) -> None:
        """Records became dead letters for the same `reason`."""
        self._dead.add(records, {**self._labels, "reason": as_word(reason)})

    def published(self, results: int) -> None:
        """Results became visible."""
        self._sent.add(results, self._kafka)

    def batch_closed(self, reason: str, items: int, tokens: int, padded_tokens: int, wait_ms: float) -> None:
        """A batch was formed; `wait_ms` is the age of its oldest item."""
        self._batches.add(1, {**self._labels, "reason": reason})
        self._batch_size.record(items, self._labels)
        self._tokens.add(tokens, self._labels)
        self._padded.add(padded_tokens, self._labels)
        self._waited.record(wait_ms / 1000.0, self._labels)

    def device_ran(self, run_ms: float) -> None:
        """One device call ended."""
        self._busy.add(run_ms / 1000.0, self._labels)
        self._ran.record(run_ms / 1000.0, self._labels)

    def committed(self, commit_ms: float, records: int) -> None:
        """A transaction of so many results and dead letters became visible."""
        self._transactions.add(1, {**self._labels, "outcome": "committed"})
        self._commit.record(commit_ms / 1000.0, self._labels)
        self._commit_size.record(records, self._labels)

    def aborted(self, reason: str) -> None:
        """A transaction was aborted or its producer replaced."""
        self._transactions.add(1, {**self._labels, "outcome": "aborted", "reason": as_word(reason)})

    def rebalanced(self, kind: str, partitions: int) -> None:
        """`kind` is `assigned`, `revoked` or `lost`."""
        labels = {**self._labels, "kind": kind}
        self._rebalances.add(1, labels)
        self._moved.add(partitions, labels)

    def lag(self, records: Mapping[TopicPartition, int]) -> None:
        """Records between committed offset and end, for each partition that is ours; replaces the last."""
        self._lag = records

    def in_flight(self, records: int, nbytes: int) -> None:
        """What has been read and not yet committed; replaces the last."""
        self._in_flight = (records, nbytes)

    def latency(self, records: Sequence[Record], now_ms: float) -> None:
        """The results of these records became visible at `now_ms` since the epoch.

        Looks at 16 of them at most, evenly spread: neighbours of one chunk have nearly the same latency.
        """
        step = -(-len(records) // MAX_LATENCY_SAMPLES) or 1
        for record in records[::step]:
            sent_ms = record.timestamp()[1]
            if sent_ms > 0:
                self._latency.record(max(0.0, now_ms - sent_ms) / 1000.0, self._labels)

    def unrecorded(self, records: int) -> None:
        """Sampled records whose trace was passed on without a span of ours: the span budget was spent."""
        self._passed.add(records, self._labels)

    def _observe_lag(self, _: CallbackOptions) -> Iterable[Observation]:
        for (topic, partition), records in self._lag.items():
            yield Observation(
                records,
                {
                    **self._group,
                    "messaging.destination.name": topic,
                    "messaging.destination.partition.id": str(partition),
                },
            )

    def _observe_in_flight(self, _: CallbackOptions) -> Iterable[Observation]:
        yield Observation(self._in_flight[0], self._labels)

    def _observe_in_flight_bytes(self, _: CallbackOptions) -> Iterable[Observation]:
        yield Observation(self._in_flight[1], self._labels)
