"""The last step of a chunk: outputs become results with their provenance, errors become dead letters.

Knows no Kafka and no thread; the loop calls it in poll order.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from consumer.codec import Encoder
from consumer.deadletter import Letters
from consumer.errors import BadRecord, Fatal, Retry
from consumer.isolation import described, report
from consumer.records import Change, Chunk, Event, Finished, identity
from consumer.state import Store
from consumer.task import State, Task
from consumer.telemetry import ChunkTrace

__all__ = ["PROVENANCE", "Finisher"]

PROVENANCE = (
    "event_id",
    "source_topic",
    "source_partition",
    "source_offset",
    "model",
    "model_version",
    "produced_at",
)
"""Fields that every result schema has and that are filled in here."""
NONE: Set[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Finisher:
    """Turns a chunk whose items are all done into what the sink publishes."""

    task: Task
    encoder: Encoder
    topic: str
    letters: Letters
    store: Store | None = None
    """Keyed state, where the task keeps any."""
    changelogs: Mapping[str, str] = field(default_factory=dict)
    """Input topic -> topic of its state's changes."""

    def finish(
        self,
        chunk: Chunk,
        events: Sequence[Event | BadRecord],
        outputs: Sequence[Any],
        trace: ChunkTrace | None,
        changes: Sequence[Change] = (),
    ) -> tuple[Finished, Mapping[int, BadRecord], Set[int]]:
        """What to publish, which places of the chunk went wrong, in order, and which have no result on purpose.

        `outputs[i]` belongs to `events[i]` and is a BadRecord where something went wrong.  `changes` are those of keyed
        state that the chunk has made already.
        """
        rejected = {i: output for i, output in enumerate(outputs) if isinstance(output, BadRecord)}
        places, rows = self._results(chunk, events, outputs, rejected)
        encoded = self.encoder.encode_many(rows, self._provenance(chunk, events, places))
        values = [value for value in encoded if not isinstance(value, BadRecord)]
        if len(values) < len(encoded):
            rejected |= {i: v for i, v in zip(places, encoded, strict=True) if isinstance(v, BadRecord)}
            places = [i for i in places if i not in rejected]
        rejected = dict(sorted(rejected.items()))
        finished = Finished(
            number=chunk.number,
            topic=self.topic,
            sources=[chunk.records[i] for i in places],
            values=values,
            headers=None if trace is None else [trace.headers[i] for i in places],
            dead=[
                self.letters.write(chunk.records[i], error, None if trace is None else trace.traceparent(i))
                for i, error in rejected.items()
            ],
            next_offsets=chunk.next_offsets,
            epochs=chunk.epochs,
            changes=[*changes, *self.store.take()] if self.store is not None else (),
            changelogs=self.changelogs,
        )
        silent = set(range(len(outputs))).difference(places, rejected) if len(places) < len(outputs) else NONE
        return finished, rejected, silent

    def _results(
        self, chunk: Chunk, events: Sequence[Any], outputs: Sequence[Any], rejected: dict[int, BadRecord]
    ) -> tuple[Sequence[int], Sequence[Event]]:
        """Places and rows of all results; what goes wrong on the way is added to `rejected`."""
        if type(self.task).finish is Task.finish and set(map(type, outputs)) == {dict}:
            return range(len(outputs)), outputs
        return self._finish_each(chunk, events, outputs, rejected)

    def _finish_each(
        self, chunk: Chunk, events: Sequence[Any], outputs: Sequence[Any], rejected: dict[int, BadRecord]
    ) -> tuple[list[int], list[Event]]:
        """Ask the task about every event that got so far, once; one that fails here fails alone."""
        places: list[int] = []
        results: list[Any] = []
        for i, output in enumerate(outputs):
            if i in rejected:
                rejected[i].stage = rejected[i].stage or "run"
                continue
            try:
                result: Any = self._finish_one(chunk, i, events[i], output)
            except (Retry, Fatal):
                raise
            except BadRecord as error:
                error.stage = error.stage or "finish"
                rejected[i] = error
            except Exception as error:
                report("finish", error)
                rejected[i] = BadRecord("finish_failed", described(error), stage="finish")
            else:
                if isinstance(result, Mapping):
                    places.append(i)
                    results.append(result)
                elif result is not None:
                    detail = f"the task gave {type(result).__name__}, not a dict"
                    rejected[i] = BadRecord("result_does_not_fit", detail, stage="finish")
        return places, results

    def _finish_one(self, chunk: Chunk, place: int, event: Event, output: Any) -> Event | None:
        if self.store is None:
            return self.task.finish(event, output, State())
        record = chunk.records[place]
        partition = (record.topic(), record.partition())
        if not self.store.holds(partition, chunk.epochs[partition]):
            return None  # not ours any more: its new owner does it again, and our state of it is gone
        return self.store.use("finish", record, lambda state: self.task.finish(event, output, state))

    def _provenance(self, chunk: Chunk, events: Sequence[Any], places: Sequence[int]) -> dict[str, list[Any]]:
        """What every result says of its origin, a column each."""
        records, count = [chunk.records[i] for i in places], len(places)
        return {
            "event_id": [identity(events[i]) for i in places],
            "source_topic": [record.topic() for record in records],
            "source_partition": [record.partition() for record in records],
            "source_offset": [record.offset() for record in records],
            "model": [self.task.name] * count,
            "model_version": [self.task.version] * count,
            "produced_at": [time.time_ns() // 1_000_000] * count,
        }
