"""Dead letters as they lie in their topic: what each says of itself, and which of them are meant.  Pure."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from consumer.deadletter import PREFIX
from consumer.records import Headers, Record, TopicPartition

__all__ = ["REPLAYS", "Letter", "Place", "Selection", "as_document"]

REPLAYS = PREFIX + "replays"
"""Header of a replayed event: how often it has been sent back.  It stays when the event fails again."""

Place = tuple[int, int]
"""(partition, offset) in the topic of dead letters: names a letter."""


@dataclass(frozen=True, slots=True)
class Letter:
    """One dead letter."""

    place: Place
    key: bytes | None
    value: bytes | None
    timestamp_ms: int
    """The event's own; 0 where it is not known."""
    headers: Headers
    """Those that the event came with."""
    ours: Mapping[str, str]
    """Those that we added, without their prefix."""

    @classmethod
    def of(cls, record: Record) -> Self:
        """A letter from a record of the topic; one that somebody else put there has no `origin`."""
        headers = record.headers() or []
        kind, timestamp_ms = record.timestamp()
        return cls(
            place=(record.partition(), record.offset()),
            key=record.key(),
            value=record.value(),
            timestamp_ms=max(timestamp_ms, 0) if kind else 0,
            headers=[(name, value) for name, value in headers if not name.startswith(PREFIX)],
            ours={  # of several the last counts: what a producer sent under our names stands before ours
                name.removeprefix(PREFIX): (value or b"").decode("utf-8", "replace")
                for name, value in headers
                if name.startswith(PREFIX)
            },
        )

    def said(self, name: str) -> str:
        """What our header `name` says; empty where it is missing."""
        return self.ours.get(name, "")

    def number(self, name: str) -> int | None:
        """The same as a number; None where it is none."""
        text = self.said(name)
        return int(text) if text.isascii() and text.lstrip("-").isdigit() else None

    @property
    def origin(self) -> tuple[TopicPartition, int] | None:
        """Where the event was sent: (topic, partition), offset."""
        partition, offset = self.number("partition"), self.number("offset")
        if not self.said("topic") or partition is None or offset is None:
            return None
        return (self.said("topic"), partition), offset

    @property
    def failed_at_ms(self) -> int:
        return self.number("failed_at_ms") or 0

    @property
    def replays(self) -> int:
        """How often its event had been sent back before it failed (again)."""
        return max(0, self.number("replays") or 0)

    @property
    def shortened(self) -> str:
        """Which part of the event was left out because the topic did not take it: key, value, headers or none."""
        return next((part for part in ("value", "key", "headers") if self.said(part)), "")

    @property
    def key_text(self) -> str:
        return "" if self.key is None else self.key.decode("utf-8", "backslashreplace")


@dataclass(frozen=True, slots=True)
class Selection:
    """Which letters are meant: all, or those that agree with everything that is named."""

    reasons: frozenset[str] = frozenset()
    stages: frozenset[str] = frozenset()
    tasks: frozenset[str] = frozenset()
    keys: frozenset[str] = frozenset()
    places: frozenset[Place] = frozenset()
    since_ms: int | None = None
    until_ms: int | None = None
    """Of the moment of failing; `until_ms` is excluded."""

    def takes(self, letter: Letter) -> bool:
        """Whether `letter` is meant."""
        named = (
            (self.reasons, letter.said("reason")),
            (self.stages, letter.said("stage")),
            (self.tasks, letter.said("task")),
            (self.keys, letter.key_text),
            (self.places, letter.place),
        )
        return (
            all(not wanted or has in wanted for wanted, has in named)
            and (self.since_ms is None or letter.failed_at_ms >= self.since_ms)
            and (self.until_ms is None or letter.failed_at_ms < self.until_ms)
        )


@dataclass(slots=True)
class Tally:
    """Letters of one kind, counted."""

    count: int = 0
    replayed: int = 0
    first_ms: int = 0
    last_ms: int = 0
    example: Place = field(default=(0, 0))

    def add(self, letter: Letter, *, replayed: bool) -> None:
        self.count += 1
        self.replayed += replayed
        moment = letter.failed_at_ms
        self.first_ms = min(self.first_ms or moment, moment)
        if moment >= self.last_ms:
            self.last_ms, self.example = moment, letter.place


def as_document(letter: Letter, replayed_at_ms: int | None) -> dict[str, Any]:
    """Everything of a letter as JSON can say it; bytes in base64."""
    return {
        "place": "{}:{}".format(*letter.place),
        **letter.ours,
        "replayed_at_ms": replayed_at_ms,
        "event_timestamp_ms": letter.timestamp_ms,
        "key": _base64(letter.key),
        "value": _base64(letter.value),
        "headers": [[name, _base64(value)] for name, value in letter.headers],
    }


def _base64(value: bytes | None) -> str | None:
    return None if value is None else base64.b64encode(value).decode("ascii")
