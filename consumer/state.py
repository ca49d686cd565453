"""What tasks remember, by partition and key.  Pure: no Kafka, no thread, no clock.  Loop thread only.

    open(partition, epoch) ─► load(changelog) ─► use(record, ...) ─► take() ─► Change, Change …
                                                  └─ a State in, changed in place, kept unless the call raises

Values lie here as the bytes that stand in the changelog: what a call changed is found by comparing, a call that raises
leaves nothing behind, and the size is known exactly.  `recall` and `finish` have a shelf each, because they see the
events at different times: written to one place, the state of one chunk would hold what later chunks recalled, and after
a crash those would be applied twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import msgspec

from consumer.errors import BadRecord
from consumer.records import Change, Record, TopicPartition
from consumer.task import State

__all__ = ["Phase", "Store"]

Phase = Literal["recall", "finish"]
Answer = TypeVar("Answer")

_MARK: Mapping[Phase, bytes] = {"recall": b"r", "finish": b"f"}
_TIME = b"t"
"""Changelog keys: `r:` or `f:` and the record's key; `r` or `f` for the partition, `r/` or `f/` and a name for a
part of it; `tr` or `tf` for its stream time."""
_ENTRY_BYTES = 200
"""What an entry takes beside its key and value: objects, a place in the dict."""

encode = msgspec.json.Encoder(order="sorted").encode  # so that equal states are equal bytes
decode = msgspec.json.Decoder(dict[str, Any]).decode


@dataclass(slots=True)
class _Shelf:
    """One phase of one partition.  `entries`: changelog key -> (value, time of its last change), the oldest first."""

    entries: dict[bytes, tuple[bytes, int]] = field(default_factory=dict)
    shared: dict[str, Any] | None = None
    """The partition's own value, decoded; None where that must be done again."""
    stream_ms: int = 0
    """Largest record time so far: the clock by which entries expire, the same at every replay."""
    nbytes: int = 0

    def put(self, key: bytes, value: bytes | None, at_ms: int) -> None:
        old = self.entries.pop(key, None)
        if old is not None:
            self.nbytes -= len(key) + len(old[0]) + _ENTRY_BYTES
        if value is not None:
            self.entries[key] = (value, at_ms)
            self.nbytes += len(key) + len(value) + _ENTRY_BYTES


class Store:
    """The state of all partitions that are ours.

    ttl_ms: how long an entry lives after its last change, by the records' own time; None is for ever.
    max_value_bytes: largest state under one key, as JSON; an event that wants more becomes a dead letter.
    """

    def __init__(self, *, ttl_ms: int | None = None, max_value_bytes: int = 65_536) -> None:
        self._ttl_ms = ttl_ms
        self._max_value_bytes = max_value_bytes
        self._epochs: dict[TopicPartition, int] = {}
        self._shelves: dict[tuple[TopicPartition, bytes], _Shelf] = {}
        self._changes: dict[tuple[TopicPartition, bytes], Change] = {}

    @property
    def nbytes(self) -> int:
        """Memory of all entries, about."""
        return sum(shelf.nbytes for shelf in self._shelves.values())

    def __len__(self) -> int:
        """Entries of all partitions."""
        return sum(len(shelf.entries) for shelf in self._shelves.values())

    def open(self, partition: TopicPartition, epoch: int) -> None:
        """Begin with nothing; what was there of an older epoch is gone."""
        self._epochs[partition] = epoch
        self._shelves |= {(partition, mark): _Shelf() for mark in _MARK.values()}

    def drop(self, partition: TopicPartition) -> None:
        """Forget a partition that is not ours any more."""
        self._epochs.pop(partition, None)
        for mark in _MARK.values():
            self._shelves.pop((partition, mark), None)

    def holds(self, partition: TopicPartition, epoch: int) -> bool:
        """Whether the partition is open in this epoch."""
        return self._epochs.get(partition) == epoch

    def load(self, partition: TopicPartition, rows: Iterable[tuple[bytes, bytes | None, int]]) -> None:
        """Take in rows of the changelog, the oldest first: key, value (None: deleted), time in ms."""
        for key, value, at_ms in rows:
            is_time = key.startswith(_TIME)
            shelf = self._shelves[partition, key[1:] if is_time else key[:1]]
            shelf.stream_ms = max(shelf.stream_ms, at_ms)
            if not is_time:
                shelf.put(key, value, at_ms)

    def use(self, phase: Phase, record: Record, call: Callable[[State], Answer]) -> Answer:
        """Run `call` with the state under the record's key and keep what it changed.

        Raises what `call` raises, and BadRecord for a record without key or a state that cannot be kept; nothing has
        changed then.
        """
        partition, key, mark = (record.topic(), record.partition()), record.key(), _MARK[phase]
        shelf, own = self._shelves[partition, mark], mark + b":" + (key or b"")
        stream_ms = max(shelf.stream_ms, record.timestamp()[1])
        known = self._living(shelf, own, stream_ms) if key is not None else b""
        shared, _ = shelf.entries.get(mark, (b"", 0))
        if shelf.shared is None:
            shelf.shared = decode(shared) if shared else {}
        before: dict[bytes, bytes] = {}

        def load(name: str) -> dict[str, Any]:
            place = mark + b"/" + name.encode()
            before[place] = self._living(shelf, place, stream_ms)
            return decode(before[place]) if before[place] else {}

        state = State(decode(known) if known else None, shelf.shared, partition[1], partition[0], load)
        try:
            answer = call(state)
            wanted, wanted_shared = self._encoded(state), self._encoded(state.partition)
            parts = list(map(self._encoded, state.parts.values()))
            if wanted and key is None:
                raise BadRecord("no_key", "the record has no key, and what the task remembers lives under it")
        except BaseException:
            shelf.shared = None  # changed in place, perhaps
            raise
        shelf.stream_ms, shelf.shared = stream_ms, state.partition
        if wanted != known:
            self._change(partition, shelf, own, wanted)
        if wanted_shared != shared:
            self._change(partition, shelf, mark, wanted_shared)
        for place, value in zip(before, parts, strict=True):
            if value != before[place]:
                self._change(partition, shelf, place, value)
        return answer

    def take(self) -> list[Change]:
        """What has changed since the last call, the last value of each key."""
        if self._ttl_ms is not None:
            for place in {(partition, key[:1]) for partition, key in self._changes if key[:1] != _TIME}:
                self._expire(*place)
        changes, self._changes = list(self._changes.values()), {}
        return changes

    def contents(self, partition: TopicPartition) -> dict[bytes, bytes]:
        """Changelog key -> value of what lives."""
        shelves = [self._shelves[partition, mark] for mark in _MARK.values()]
        return {
            key: value
            for shelf in shelves
            for key, (value, at_ms) in shelf.entries.items()
            if len(key) == 1 or not self._is_over(at_ms, shelf.stream_ms)
        }

    def _living(self, shelf: _Shelf, key: bytes, now_ms: int) -> bytes:
        value, changed_ms = shelf.entries.get(key, (b"", now_ms))
        return b"" if self._is_over(changed_ms, now_ms) else value

    def _encoded(self, state: dict[str, Any]) -> bytes:
        if not state:
            return b""
        try:
            value = encode(state)
        except (TypeError, ValueError, OverflowError) as error:
            raise BadRecord("state_does_not_fit", f"the task's state is not JSON: {error}") from error
        if len(value) > self._max_value_bytes:
            raise BadRecord(
                "state_too_large",
                f"the state would take {len(value):,} bytes; state_max_bytes allows {self._max_value_bytes:,}",
            )
        return value

    def _change(self, partition: TopicPartition, shelf: _Shelf, key: bytes, value: bytes) -> None:
        at_ms = shelf.stream_ms
        shelf.put(key, value or None, at_ms)
        self._changes[partition, key] = Change(partition, key, value or None, at_ms)
        if self._ttl_ms is not None:
            clock = _TIME + key[:1]
            self._changes[partition, clock] = Change(partition, clock, b"{}", at_ms)

    def _expire(self, partition: TopicPartition, mark: bytes) -> None:
        """Delete what is over, at the old end.  Invisible by now, so when exactly this happens changes nothing."""
        shelf = self._shelves[partition, mark]
        over = []
        for key, (_, changed_ms) in shelf.entries.items():
            if not self._is_over(changed_ms, shelf.stream_ms):
                break
            if key != mark:
                over.append(key)
        for key in over:
            self._change(partition, shelf, key, b"")

    def _is_over(self, changed_ms: int, now_ms: int) -> bool:
        return self._ttl_ms is not None and now_ms - changed_ms > self._ttl_ms
