"""Dead letters: the record as it came, and why it went no further.

Key, value, headers and timestamp are untouched; what we add stands in headers of its own, so that the bytes can be sent
back to their topic after a fix.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

from consumer.errors import BadRecord, Fatal
from consumer.records import Headers, Outgoing, Record
from consumer.task import Task

__all__ = ["PREFIX", "Cap", "Letters"]

PREFIX = "dead_letter."
"""Every header that we add starts with this."""

_MAX_CHARACTERS = 1000
_MAX_HEADER = 10 * _MAX_CHARACTERS
_OURS = 20
"""More headers than we ever add to one letter."""
_TOO_LARGE = "MSG_SIZE_TOO_LARGE"


@dataclass(frozen=True, slots=True)
class Letters:
    """Writes dead letters for one task into one topic."""

    topic: str
    task: Task
    group: str

    def write(self, record: Record, error: BadRecord, traceparent: str | None = None) -> Outgoing:
        """The dead letter of `record`."""
        _, timestamp_ms = record.timestamp()
        ours = {
            "reason": error.reason,
            "stage": error.stage or "unknown",
            "error": error.detail,
            "topic": record.topic(),
            "partition": str(record.partition()),
            "offset": str(record.offset()),
            "timestamp_ms": str(timestamp_ms),
            "task": self.task.name,
            "model_version": self.task.version,  # known only once the model is loaded
            "group": self.group,
            "failed_at_ms": str(time.time_ns() // 1_000_000),
        }
        if traceparent is not None:
            ours["traceparent"] = traceparent
        headers = [*_headers_of(record), *(_header(name, value) for name, value in ours.items())]
        return Outgoing(self.topic, record.key(), record.value(), headers, max(timestamp_ms, 0), record)

    def refused(self, record: Record, nbytes: int, topic: str, reason: str) -> Outgoing:
        """The dead letter for an event whose result of `nbytes` the topic did not take; `reason` is Kafka's word."""
        if reason == _TOO_LARGE:
            detail = (
                f"the result has {nbytes} bytes, more than topic {topic!r} takes; raise its max.message.bytes"
            )
            return self.write(record, BadRecord("result_too_large", detail, stage="publish"))
        detail = f"topic {topic!r} does not take the result ({reason}); if it is compacted, every event needs a key"
        return self.write(record, BadRecord("result_refused", detail, stage="publish"))

    @staticmethod
    def lighten(letter: Outgoing, reason: str) -> Outgoing | None:
        """A letter that its topic may take, after it did not take this one; None where nothing is left to change.

        Too large: without the largest of value, foreign headers and key (the origin still has them).  A moment too far
        from the broker's: with that of now; ours stands in the headers.
        """
        if reason == "INVALID_TIMESTAMP" and letter.timestamp_ms:
            return replace(letter, timestamp_ms=0)
        ours = [(k, v) for k, v in letter.headers if k.startswith(PREFIX) and len(v or b"") <= _MAX_HEADER]
        ours = ours[-_OURS:]
        sizes = {
            "value": len(letter.value or b""),
            "headers": _size(letter.headers) - _size(ours),
            "key": len(letter.key or b""),
        }
        part = max(sizes, key=sizes.__getitem__)
        if reason != _TOO_LARGE or not sizes[part]:
            return None
        note = f"{sizes[part]} bytes left out: too large for this topic; read them at the origin"
        headers = [*(ours if part == "headers" else letter.headers), _header(part, note)]
        return replace(
            letter,
            key=None if part == "key" else letter.key,
            value=None if part == "value" else letter.value,
            headers=headers,
        )


def _headers_of(record: Record) -> Headers:
    """Its headers.  The client cannot read those with a name that is not UTF-8; the record must pass nevertheless."""
    try:
        return record.headers() or []
    except Exception as error:
        return [_header("headers", f"left out: unreadable ({type(error).__name__}); they are at the origin")]


def _size(headers: Headers) -> int:
    return sum(len(name) + len(value or b"") for name, value in headers)


def _header(name: str, value: object) -> tuple[str, bytes]:
    """A header of ours.  A task may put anything into its errors; a dead letter must be writable nevertheless."""
    return PREFIX + name, str(value)[:_MAX_CHARACTERS].encode("utf-8", "backslashreplace")


class Cap:
    """Stops the worker when too much goes wrong: a bad deployment must not drain a topic into dead letters.

    `max_share` of the last `window` records, judged once the window is full; `max_run` dead letters in a row (0 = off).
    """

    def __init__(self, max_share: float, window: int, max_run: int) -> None:
        self._max_share = max_share
        self._window = window
        self._max_run = max_run
        self._counts: deque[tuple[int, int]] = deque()
        self._seen = 0
        self._dead = 0
        self._run = 0
        self._latest: BadRecord | None = None

    def observe(self, dead: Sequence[int], count: int, latest: BadRecord | None) -> None:
        """Take in a chunk of `count` records of which those at the positions `dead` (ascending) went wrong.

        Raises Fatal over the cap; the chunk must then not be committed.
        """
        self._latest = latest or self._latest
        self._follow_run(dead, count)
        self._counts.append((count, len(dead)))
        self._seen += count
        self._dead += len(dead)
        while len(self._counts) > 1 and self._seen - self._counts[0][0] >= self._window:
            old_count, old_dead = self._counts.popleft()
            self._seen -= old_count
            self._dead -= old_dead
        if self._seen >= self._window and self._dead > self._max_share * self._seen:
            raise _over(
                f"{self._dead} of the last {self._seen} records", "dead_letter_max_share", self._latest
            )

    def _follow_run(self, dead: Sequence[int], count: int) -> None:
        if not dead:
            self._run = 0 if count else self._run
            return
        end = -1
        for place in dead:
            self._run = self._run + 1 if place == end + 1 else 1
            end = place
            if self._max_run and self._run > self._max_run:
                raise _over(f"{self._run} records in a row", "dead_letter_max_run", self._latest)
        if end != count - 1:
            self._run = 0


def _over(what: str, setting: str, latest: BadRecord | None) -> Fatal:
    return Fatal(
        f"{what} became dead letters, the latest for: {latest}. That looks like a bad deployment or a wrong topic, so "
        f"nothing more is read; the offsets of this chunk are not committed. Mend the cause and start again, or raise "
        f"{setting} if this much is expected"
    )
