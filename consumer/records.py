"""The words of the data path: what one part hands to the next.

Columns instead of objects: a chunk may hold thousands of records and more than 100,000 records a second go through,
so a part touches a list once a chunk; a frozen dataclass for every record would cost a sixth of the whole budget.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

__all__ = [
    "Change",
    "Chunk",
    "Epochs",
    "Event",
    "Finished",
    "Grant",
    "Headers",
    "Offsets",
    "Outgoing",
    "Record",
    "TopicPartition",
    "identity",
]

Event = dict[str, Any]
"""A decoded record: field name -> Avro value (timestamps stay integers in the unit of their schema)."""


def identity(event: Event) -> str:
    """What names an event: its `id`, or of a result the event that it is about."""
    return str(event["id"] if "id" in event else event.get("event_id"))


TopicPartition = tuple[str, int]
Headers = list[tuple[str, bytes | None]]
Offsets = Mapping[TopicPartition, int]
"""For each partition the next offset to read: the last finished offset + 1."""
Epochs = Mapping[TopicPartition, int]
"""For each partition how often it has been assigned to this worker; work of an old epoch is dropped."""


class Record(Protocol):
    """Bytes from Kafka as the client library hands them out; never changed by us."""

    def topic(self) -> str: ...
    def partition(self) -> int: ...
    def offset(self) -> int: ...
    def key(self) -> bytes | None: ...
    def value(self) -> bytes | None: ...
    def headers(self) -> Headers | None: ...
    def timestamp(self) -> tuple[int, int]:
        """(kind of timestamp, milliseconds since the epoch)."""
        ...


@dataclass(frozen=True, slots=True)
class Chunk:
    """The records of one poll in poll order: the unit of order, state and commit."""

    number: int
    records: Sequence[Record]
    next_offsets: Offsets
    epochs: Epochs
    nbytes: int
    received_ns: int
    """`time.monotonic_ns()` right after the poll."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One record to publish beside the results: a dead letter.  `source` is the record that it speaks of."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers
    timestamp_ms: int
    source: Record


@dataclass(frozen=True, slots=True)
class Change:
    """One change of keyed state: a row of the changelog, in the partition with the number of its `source`."""

    source: TopicPartition
    key: bytes
    value: bytes | None
    timestamp_ms: int


@dataclass(frozen=True, slots=True)
class Finished:
    """A finished chunk on its way to the sink: all that must become visible together.

    `values[i]` is the encoded result of the event in `sources[i]` and gets that record's key; `headers[i]` belongs to
    it where `headers` is given.
    """

    number: int
    topic: str
    sources: Sequence[Record]
    values: Sequence[bytes]
    headers: Sequence[Headers | None] | None
    dead: Sequence[Outgoing]
    next_offsets: Offsets
    epochs: Epochs
    changes: Sequence[Change] = ()
    """Of keyed state, for the changelog of their topic."""
    changelogs: Mapping[str, str] = field(default_factory=dict)
    """Input topic -> topic of its state's changes."""

    def without(self, gone: frozenset[TopicPartition]) -> Finished:
        """The same less everything that came from the partitions in `gone`."""
        if gone.isdisjoint(self.next_offsets):
            return self
        stays = [i for i, r in enumerate(self.sources) if (r.topic(), r.partition()) not in gone]
        return replace(
            self,
            sources=[self.sources[i] for i in stays],
            values=[self.values[i] for i in stays],
            headers=None if self.headers is None else [self.headers[i] for i in stays],
            dead=[d for d in self.dead if (d.source.topic(), d.source.partition()) not in gone],
            next_offsets={tp: o for tp, o in self.next_offsets.items() if tp not in gone},
            epochs={tp: e for tp, e in self.epochs.items() if tp not in gone},
            changes=[change for change in self.changes if change.source not in gone],
        )

    def with_dead(self, place: int, letter: Outgoing) -> Finished:
        """The same with a dead letter instead of the result at `place`."""
        stays = [i for i in range(len(self.values)) if i != place]
        return replace(
            self,
            sources=[self.sources[i] for i in stays],
            values=[self.values[i] for i in stays],
            headers=None if self.headers is None else [self.headers[i] for i in stays],
            dead=[*self.dead, letter],
        )


@dataclass(frozen=True, slots=True)
class Grant:
    """What the sink may commit: the partitions that are ours, and the proof of membership that goes with them.

    Both are taken on the loop thread in one breath after a poll: metadata of one generation with the partitions of
    another would commit offsets of a partition that somebody else reads by now.
    """

    epochs: Epochs
    metadata: Any
    """The client library's group metadata (opaque to everyone but source and sink); None while we are no member."""
