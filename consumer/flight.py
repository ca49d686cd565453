"""What the loop knows of the chunks under way: at work until their outputs are there, in flight until committed.

admit ─► at work ─(all outputs)─► pop_done ─► sink ─► settle
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from itertools import islice, pairwise
from typing import Any

from consumer.errors import BadRecord
from consumer.records import Change, Chunk, Epochs, Event, identity
from consumer.sink import Settled
from consumer.telemetry import ChunkTrace, Past

__all__ = ["AtWork", "Flights", "InFlight"]

_MAX_IDS = 100


@dataclass(slots=True)
class AtWork:
    """A chunk that is being worked on.  `outputs[i]` is a BadRecord where record i went wrong."""

    chunk: Chunk
    events: Sequence[Event | BadRecord]
    values: list[Any]
    """What the model gets, by place."""
    outputs: list[Any]
    missing: int
    """Outputs that are still to come."""
    trace: ChunkTrace | None
    recalled: Sequence[Any] | None = None
    """What the task recalled, by place; None where it recalls nothing."""
    changes: Sequence[Change] = ()
    """Of keyed state, made while recalling."""
    began_ns: int = 0
    """When the first of it went to the device, and when the last came back (monotonic); 0: nothing did."""
    done_ns: int = 0
    held: int = 0
    """Bytes of its prepared items that the device has not seen."""

    def good_stretches(self) -> Iterator[tuple[int, int]]:
        """(start, stop) of the stretches between what was rejected already."""
        bad = [place for place, output in enumerate(self.outputs) if output is not None]
        return (
            (left + 1, right) for left, right in pairwise([-1, *bad, len(self.outputs)]) if left + 1 < right
        )


@dataclass(frozen=True, slots=True)
class InFlight:
    """A chunk between its poll and its commit."""

    chunk: Chunk
    trace: ChunkTrace | None
    events: Sequence[Event | BadRecord] = ()
    """Kept for the ids in the spans, where there are any."""
    rejected: Mapping[int, str] = field(default_factory=dict)
    silent: Set[int] = frozenset()
    ids: Mapping[int, str] = field(default_factory=dict)
    """Event ids of what may be told of although nobody traces it."""
    began_ns: int = 0
    done_ns: int = 0

    @property
    def recorded(self) -> Set[int]:
        """Places that have spans."""
        return frozenset() if self.trace is None else self.trace.recorded

    def past(self, settled: Settled) -> Past:
        """What became of it, now that it is committed."""
        return Past(
            reasons=self.rejected,
            silent=self.silent,
            ids=self.ids,
            began_ns=self.began_ns,
            done_ns=self.done_ns,
            commit_ns=settled.ended_ns - settled.began_ns,
            ended_ns=settled.ended_ns,
        )

    def end_trace(self, settled: Settled) -> None:
        """End the spans of its records: committed, or dropped with their partition."""
        if self.trace is not None:
            self.trace.drop(settled.dropped)
            commit_ms = (settled.ended_ns - settled.began_ns) / 1e6
            self.trace.end(
                commit_ms=commit_ms, rejected=self.rejected, silent=self.silent, event_ids=self._event_id
            )

    def _event_id(self, place: int) -> str | None:
        event = self.events[place]
        return None if isinstance(event, BadRecord) else str(identity(event))


class Flights:
    """All chunks between poll and commit, and how much they are.  Loop thread only."""

    def __init__(self) -> None:
        self.at_work: dict[int, AtWork] = {}
        """By number, the oldest first."""
        self.records = 0
        self.nbytes = 0
        self.held = 0
        """Bytes of prepared items that the device has not seen."""
        self._in_flight: dict[int, InFlight] = {}

    def __len__(self) -> int:
        return len(self._in_flight)

    def admit(
        self,
        chunk: Chunk,
        events: list[Event | BadRecord],
        trace: ChunkTrace | None,
        recalled: Sequence[Any] | None = None,
        changes: Sequence[Change] = (),
    ) -> AtWork:
        """Begin work on a decoded chunk."""
        outputs: list[Any] = [event if type(event) is BadRecord else None for event in events]
        missing = outputs.count(None)
        opened = AtWork(chunk, events, list(events), outputs, missing, trace, recalled, changes)
        self.at_work[chunk.number] = opened
        self._in_flight[chunk.number] = InFlight(chunk, trace, events if trace is not None else ())
        self.records += len(events)
        self.nbytes += chunk.nbytes
        return opened

    def hold(self, opened: AtWork, nbytes: int) -> None:
        """Items of a chunk at work were prepared, or (below zero) seen by the device."""
        opened.held += nbytes
        self.held += nbytes

    def pop_done(self) -> Iterator[AtWork]:
        """Chunks whose outputs are all there, in the order in which they came and not past one that is not done."""
        while self.at_work:
            number, opened = next(iter(self.at_work.items()))
            if opened.missing:
                return
            del self.at_work[number]
            yield opened

    def note(self, opened: AtWork, rejected: Mapping[int, BadRecord], silent: Set[int]) -> None:
        """How the records of a chunk ended that did not end in a result; for its trace."""
        number = opened.chunk.number
        told = {0, *islice(rejected, _MAX_IDS)}
        self._in_flight[number] = replace(
            self._in_flight[number],
            rejected={place: error.reason for place, error in rejected.items()},
            silent=silent,
            ids={place: identity(event) for place in told if isinstance(event := opened.events[place], dict)},
            began_ns=opened.began_ns,
            done_ns=opened.done_ns,
        )

    def settle(self, number: int) -> InFlight:
        """A chunk is over."""
        flight = self._in_flight.pop(number)
        self.records -= len(flight.chunk.records)
        self.nbytes -= flight.chunk.nbytes
        return flight

    def drop_foreign(self, epochs: Epochs) -> frozenset[int]:
        """Give up the chunks at work of which nothing is ours any more; returns their numbers."""
        gone = frozenset(
            number
            for number, opened in self.at_work.items()
            if not any(epochs.get(tp) == epoch for tp, epoch in opened.chunk.epochs.items())
        )
        for number in gone:
            self.held -= self.at_work.pop(number).held
            if (trace := self.settle(number).trace) is not None:
                trace.drop()
        return gone
