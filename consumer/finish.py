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
from consumer.records import Chunk, Event, Finished, Record
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
        rejected = {i: output for i, output in enumerate(outputs) if type(output) is BadRecord}
        places: Sequence[int] = range(len(outputs))
        results = outputs
        if rejected or type(self.task).finish is not Task.finish:
            places, results = self._finish_each(events, outputs, rejected)
        try:
            rows = self._rows(chunk, events, places, results)
        except TypeError:  # an output is no dict
            rejected |= _no_dicts(places, results)
            places, results = self._finish_each(events, outputs, rejected)
            rows = self._rows(chunk, events, places, results)
        values = self.encoder.encode_many(rows)
        bad = {places[k]: value for k, value in enumerate(values) if type(value) is BadRecord}
        if bad:
            rejected = dict(sorted((rejected | bad).items()))
            places, values = (
                [i for i in places if i not in bad],
                [v for v in values if type(v) is not BadRecord],
            )
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

    def _finish_each(
        self, events: Sequence[Any], outputs: Sequence[Any], rejected: dict[int, BadRecord]
    ) -> tuple[list[int], list[Event]]:
        """Ask the task about every event that got so far; one that fails here fails alone."""
        places, results = [], []
        for i, output in enumerate(outputs):
            if i in rejected:
                continue
            try:
                result = self.task.finish(events[i], output, {})
            except (Retry, Fatal):
                raise
            except BadRecord as error:
                error.stage = error.stage or "finish"
                rejected[i] = error
            except Exception as error:
                rejected[i] = BadRecord("finish_failed", f"{type(error).__name__}: {error}", stage="finish")
            else:
                if result is not None:
                    places.append(i)
                    results.append(result)
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


def _no_dicts(places: Sequence[int], results: Sequence[Any]) -> dict[int, BadRecord]:
    return {
        i: BadRecord("result_does_not_fit", f"the task gave {type(result).__name__}, not a dict", stage="finish")
        for i, result in zip(places, results, strict=True)
        if not isinstance(result, dict)
    }
