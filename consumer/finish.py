"""The last step of a chunk: outputs become results with their provenance, errors become dead letters.

Knows no Kafka and no thread; the loop calls it in poll order.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from consumer.codec import Encoder
from consumer.deadletter import Letters
from consumer.errors import BadRecord, Fatal, Retry
from consumer.isolation import described
from consumer.records import Chunk, Event, Finished
from consumer.task import Task
from consumer.telemetry import ChunkTrace

__all__ = ["Finisher"]


@dataclass(frozen=True, slots=True)
class Finisher:
    """Turns a chunk whose items are all done into what the sink publishes."""

    task: Task
    encoder: Encoder
    topic: str
    letters: Letters

    def finish(
        self,
        chunk: Chunk,
        events: Sequence[Event | BadRecord],
        outputs: Sequence[Any],
        trace: ChunkTrace | None,
    ) -> tuple[Finished, Mapping[int, BadRecord]]:
        """What to publish, and which places of the chunk went wrong, in order.

        `outputs[i]` belongs to `events[i]` and is a BadRecord where something went wrong.
        """
        rejected = {i: output for i, output in enumerate(outputs) if isinstance(output, BadRecord)}
        places, rows = self._results(chunk, events, outputs, rejected)
        encoded = self.encoder.encode_many(rows)
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
        )
        return finished, rejected

    def _results(
        self, chunk: Chunk, events: Sequence[Any], outputs: Sequence[Any], rejected: dict[int, BadRecord]
    ) -> tuple[Sequence[int], list[Event]]:
        """Places and rows of all results; what goes wrong on the way is added to `rejected`."""
        if not rejected and type(self.task).finish is Task.finish:
            try:
                return range(len(outputs)), self._rows(chunk, events, range(len(outputs)), outputs)
            except TypeError:
                pass  # an output is None or no dict: take them one by one
        places, results = self._finish_each(events, outputs, rejected)
        return places, self._rows(chunk, events, places, results)

    def _finish_each(
        self, events: Sequence[Any], outputs: Sequence[Any], rejected: dict[int, BadRecord]
    ) -> tuple[list[int], list[Event]]:
        """Ask the task about every event that got so far, once; one that fails here fails alone."""
        places: list[int] = []
        results: list[Any] = []
        for i, output in enumerate(outputs):
            if i in rejected:
                rejected[i].stage = rejected[i].stage or "run"
                continue
            try:
                result: Any = self.task.finish(events[i], output, {})
            except (Retry, Fatal):
                raise
            except BadRecord as error:
                error.stage = error.stage or "finish"
                rejected[i] = error
            except Exception as error:
                rejected[i] = BadRecord("finish_failed", described(error), stage="finish")
            else:
                if isinstance(result, Mapping):
                    places.append(i)
                    results.append(result)
                elif result is not None:
                    detail = f"the task gave {type(result).__name__}, not a dict"
                    rejected[i] = BadRecord("result_does_not_fit", detail, stage="finish")
        return places, results

    def _rows(
        self, chunk: Chunk, events: Sequence[Any], places: Sequence[int], results: Sequence[Event]
    ) -> list[Event]:
        """Results with what every result says of its origin; the task's own fields win."""
        stamp = {
            "model": self.task.name,
            "model_version": self.task.version,
            "produced_at": time.time_ns() // 1_000_000,
        }
        records = chunk.records
        return [
            {
                "event_id": events[i]["id"],
                "source_topic": (record := records[i]).topic(),
                "source_partition": record.partition(),
                "source_offset": record.offset(),
                **stamp,
                **result,
            }
            for i, result in zip(places, results, strict=True)
        ]
