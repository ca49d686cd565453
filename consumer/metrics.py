"""What is counted and measured.  One call a chunk, a batch or a transaction, never a record.

Shares are ratios of counters: device busy share is `rate(consumer_device_busy_seconds_total)`, padding share
`1 - rate(consumer_batch_tokens_total) / rate(consumer_batch_padded_tokens_total)`.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence

from opentelemetry.metrics import CallbackOptions, Histogram, Meter, Observation

from consumer.records import Record, TopicPartition

__all__ = ["Metrics", "as_word"]

Labels = dict[str, str]

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5, 5.0, 10.0, 30.0, 60.0)
LATENCY_SECONDS = (*SECONDS, 300.0, 1800.0, 3600.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
MAX_LATENCY_SAMPLES = 8
WORD = re.compile(r"[a-z][a-z0-9_]{0,39}")


def as_word(reason: str) -> str:
    """`reason` where it is a short stable word, else `other`: a task's free text must not become a label."""
    return reason if WORD.fullmatch(reason) else "other"


class Tally:
    """A counter by one label, summed here and read when somebody collects: the SDK's own costs 5 us a call."""

    def __init__(self, meter: Meter, name: str, unit: str, text: str, labels: Labels, by: str = "") -> None:
        self._labels = labels
        self._by = by
        self._lock = threading.Lock()
        self._sums: dict[str, float] = {}
        meter.create_observable_counter(name, [self._observe], unit, text)

    def add(self, amount: float, label: str = "") -> None:
        with self._lock:
            self._sums[label] = self._sums.get(label, 0) + amount

    def _observe(self, _: CallbackOptions) -> Iterable[Observation]:
        with self._lock:
            sums = dict(self._sums)
        return [
            Observation(v, {**self._labels, self._by: k} if self._by else self._labels)
            for k, v in sums.items()
        ]


class Metrics:
    """The instruments of one worker.  Every method may be called on any thread."""

    def __init__(self, meter: Meter, *, task: str, group: str) -> None:
        self._labels: Labels = {"task": task}
        self._group: Labels = {"task": task, "messaging.consumer.group.name": group}
        self._lag: Mapping[TopicPartition, int] = {}
        self._in_flight = (0, 0)
        self._state = (0, 0)
        self._count(meter, {**self._group, "messaging.system": "kafka"})
        self._measure(meter)
        self._observe(meter)

    def _count(self, meter: Meter, kafka: Labels) -> None:
        def tally(name: str, unit: str, text: str, by: str = "") -> Tally:
            return Tally(meter, f"consumer.{name}", unit, text, self._labels, by)

        self._consumed = Tally(
            meter, "messaging.client.consumed.messages", "{message}", "records read", kafka
        )
        self._sent = Tally(meter, "messaging.client.sent.messages", "{message}", "results committed", kafka)
        self._consumed_bytes = tally("consumed", "By", "keys and values read")
        self._dead = tally("dead_letters", "{record}", "dead letters by reason", "reason")
        self._batches = tally("batches", "{batch}", "batches by closing reason", "reason")
        self._tokens = tally("batch.tokens", "{token}", "tokens that carry something")
        self._padded = tally("batch.padded_tokens", "{token}", "tokens computed, padding included")
        self._busy = tally("device.busy", "s", "time the device worked")
        self._committed = tally("transactions.committed", "{transaction}", "transactions that became visible")
        self._aborted = tally(
            "transactions.aborted", "{transaction}", "transactions aborted, by reason", "reason"
        )
        self._rebalances = tally("rebalances", "{rebalance}", "rebalances by kind", "kind")
        self._moved = tally("rebalance.partitions", "{partition}", "partitions moved, by kind", "kind")
        self._unrecorded = tally("traces.unrecorded", "{record}", "sampled records beyond the span budget")

    def _measure(self, meter: Meter) -> None:
        def histogram(name: str, unit: str, text: str, bounds: Sequence[float]) -> Histogram:
            return meter.create_histogram(
                f"consumer.{name}", unit, text, explicit_bucket_boundaries_advisory=bounds
            )

        self._chunk_size = histogram("chunk.size", "{record}", "records in a chunk", SIZES)
        self._batch_size = histogram("batch.size", "{item}", "items in a batch", SIZES)
        self._waited = histogram("batch.wait", "s", "age of a batch's oldest item", SECONDS)
        self._ran = histogram("batch.run", "s", "time of one device call", SECONDS)
        self._commit = histogram("commit", "s", "begin to end of one transaction", SECONDS)
        self._commit_size = histogram("transaction.size", "{record}", "records in a transaction", SIZES)
        self._latency = histogram(
            "latency",
            "s",
            f"record's time to its committed result, of at most {MAX_LATENCY_SAMPLES} records a chunk",
            LATENCY_SECONDS,
        )

    def _observe(self, meter: Meter) -> None:
        def gauge(name: str, unit: str, text: str, now: Callable[[], Iterable[Observation]]) -> None:
            meter.create_observable_gauge(f"consumer.{name}", [lambda _: now()], unit, text)

        gauge("lag", "{record}", "records not yet committed, by partition", self._lags)
        gauge("in_flight", "{record}", "records read and not yet committed", lambda: [self._now(0)])
        gauge("in_flight.size", "By", "bytes read and not yet committed", lambda: [self._now(1)])
        gauge("state.entries", "{entry}", "entries of keyed state", lambda: [self._remembered(0)])
        gauge("state.size", "By", "memory of keyed state, about", lambda: [self._remembered(1)])

    def polled(self, records: int, nbytes: int) -> None:
        """One chunk was read."""
        self._consumed.add(records)
        self._consumed_bytes.add(nbytes)
        self._chunk_size.record(records, self._labels)

    def dead(self, reason: str, records: int = 1) -> None:
        """Records became dead letters for the same `reason`."""
        self._dead.add(records, as_word(reason))

    def published(self, results: int) -> None:
        """Results became visible."""
        self._sent.add(results)

    def batch_closed(self, reason: str, items: int, tokens: int, padded_tokens: int, wait_ms: float) -> None:
        """A batch was formed; `wait_ms` is the age of its oldest item."""
        self._batches.add(1, reason)
        self._tokens.add(tokens)
        self._padded.add(padded_tokens)
        self._batch_size.record(items, self._labels)
        self._waited.record(wait_ms / 1000.0, self._labels)

    def device_ran(self, run_ms: float) -> None:
        """One device call ended."""
        self._busy.add(run_ms / 1000.0)
        self._ran.record(run_ms / 1000.0, self._labels)

    def committed(self, commit_ms: float, records: int) -> None:
        """A transaction of so many results and dead letters became visible."""
        self._committed.add(1)
        self._commit.record(commit_ms / 1000.0, self._labels)
        self._commit_size.record(records, self._labels)

    def aborted(self, reason: str) -> None:
        """A transaction was aborted or its producer replaced."""
        self._aborted.add(1, as_word(reason))

    def rebalanced(self, kind: str, partitions: int) -> None:
        """`kind` is `assigned`, `revoked` or `lost`."""
        self._rebalances.add(1, kind)
        self._moved.add(partitions, kind)

    def lag(self, records: Mapping[TopicPartition, int]) -> None:
        """Records between committed offset and end, for each partition that is ours; replaces the last."""
        self._lag = records

    def in_flight(self, records: int, nbytes: int) -> None:
        """What has been read and not yet committed; replaces the last."""
        self._in_flight = (records, nbytes)

    def state(self, entries: int, nbytes: int) -> None:
        """What a stateful task remembers; replaces the last."""
        self._state = (entries, nbytes)

    def latency(self, records: Sequence[Record], now_ms: float) -> None:
        """The results of these records became visible at `now_ms` since the epoch.

        Looks at 8 of them at most, evenly spread: neighbours of one chunk have nearly the same latency.
        """
        step = -(-len(records) // MAX_LATENCY_SAMPLES) or 1
        for record in records[::step]:
            sent_ms = record.timestamp()[1]
            if sent_ms > 0:
                self._latency.record(max(0.0, now_ms - sent_ms) / 1000.0, self._labels)

    def unrecorded(self, records: int) -> None:
        """Sampled records whose trace was passed on without a span of ours: the span budget was spent."""
        self._unrecorded.add(records)

    def _lags(self) -> Iterable[Observation]:
        for (topic, partition), records in self._lag.items():
            where = {
                "messaging.destination.name": topic,
                "messaging.destination.partition.id": str(partition),
            }
            yield Observation(records, {**self._group, **where})

    def _remembered(self, which: int) -> Observation:
        return Observation(self._state[which], self._labels)

    def _now(self, which: int) -> Observation:
        return Observation(self._in_flight[which], self._labels)
