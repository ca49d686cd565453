"""When to read on: not without room, not while the schema registry is away, and never without serving the group.

source ─poll─► chunk ─decode─► (chunk, events)
                 └─ registry away: kept, tried again, reading held
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Mapping

from consumer.codec import Decoder
from consumer.errors import BadRecord, Retry
from consumer.records import Chunk, Event
from consumer.source import Source

__all__ = ["Decoded", "Intake"]

log = logging.getLogger(__name__)

_FULL_BEFORE_HOLD_S = 0.5
_REGISTRY_RETRY_S = 1.0
_REGISTRY_POLL_S = 0.05

Decoded = tuple[Chunk, list[Event | BadRecord]]


class Intake:
    """Reads and decodes chunks.  `decoders`: topic -> decoder.  Loop thread only."""

    def __init__(self, source: Source, decoders: Mapping[str, Decoder]) -> None:
        self._source = source
        self._decoders = decoders
        self._kept: deque[Chunk] = deque()
        self._kept_until = 0.0
        self._full_since: float | None = None
        self.flowing = False
        """Whether the last poll brought records: then more are probably there."""

    @property
    def full(self) -> bool:
        """Whether there was no room the last time."""
        return self._full_since is not None

    def next(self, *, room: bool, patience_s: float) -> Decoded | None:
        """The next chunk; waits up to `patience_s` for one when there is `room`."""
        if self._kept:
            chunk = self._again()
        elif room:
            self._full_since = None
            self._source.release()
            chunk = self._source.poll(patience_s)
        else:
            chunk = self._poll_full()
        self.flowing = chunk is not None
        return None if chunk is None else self._decoded(chunk)

    def serve_group(self) -> None:
        """Stay a member without reading on: what comes all the same is left to the next worker."""
        self._kept.clear()
        self._source.hold()
        self._source.poll(0)

    def _poll_full(self) -> Chunk | None:
        """No room.  A short stall keeps the prefetched records; in a long one the group must be served."""
        now = time.monotonic()
        self._full_since = self._full_since or now
        if now - self._full_since < _FULL_BEFORE_HOLD_S:
            return None
        self._source.hold()
        return self._source.poll(0)

    def _again(self) -> Chunk | None:
        """The registry was away when the kept chunks came: keep them and the membership, and try again."""
        self._source.hold()
        if (stray := self._source.poll(_REGISTRY_POLL_S)) is not None:
            self._kept.append(stray)
        return self._kept.popleft() if time.monotonic() >= self._kept_until else None

    def _decoded(self, chunk: Chunk) -> Decoded | None:
        try:
            return chunk, self._decode(chunk)
        except Retry as outage:
            log.warning("%s; the records are kept and tried again", outage)
            self._kept.appendleft(chunk)
            self._kept_until = time.monotonic() + _REGISTRY_RETRY_S
            return None

    def _decode(self, chunk: Chunk) -> list[Event | BadRecord]:
        if len(self._decoders) == 1:
            (decoder,) = self._decoders.values()
            return decoder.decode_many([record.value() for record in chunk.records])
        places: dict[str, list[int]] = {}
        for place, record in enumerate(chunk.records):
            places.setdefault(record.topic(), []).append(place)
        events: list[Event | BadRecord] = [{}] * len(chunk.records)
        for topic, where in places.items():
            decoded = self._decoders[topic].decode_many([chunk.records[i].value() for i in where])
            for place, event in zip(where, decoded, strict=True):
                events[place] = event
        return events
