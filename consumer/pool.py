"""The prepare pool: CPU-heavy, state-free work on slices of a chunk, on threads of its own.  Knows no Kafka.

Where a task's `prepare` says Retry (what it needs is away), its slice waits and is prepared again, for as long as it
takes: reading pauses when the pipeline is full, and nothing is lost.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from consumer.engine import Failed
from consumer.errors import BadRecord, ConsumerError, Fatal, Retry
from consumer.isolation import as_item, described, isolate
from consumer.records import Event
from consumer.task import Item, Task

__all__ = ["Pool", "Prepared"]

log = logging.getLogger(__name__)

_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 4.0
"""Before an outage is tried again: twice as long each time."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """The items of the events at `start`... of a chunk; a `BadRecord` stands for one that was rejected."""

    chunk: int
    start: int
    items: Sequence[Item | BadRecord]


class Pool:
    """Runs `task.prepare`.  `post` takes `Prepared` and `Failed` back to the loop; `submit` never blocks."""

    def __init__(self, task: Task, threads: int, post: Callable[[Prepared | Failed], None]) -> None:
        self._task = task
        self._post = post
        self._inbox: queue.SimpleQueue[tuple[int, int, Sequence[tuple[Event, Any]]] | None] = (
            queue.SimpleQueue()
        )
        self._threads = threads
        self._stopping = threading.Event()
        for number in range(threads):
            # daemons: a `prepare` that hangs must not hold up the end of the process
            threading.Thread(target=self._main, name=f"prepare-{number}", daemon=True).start()

    def submit(
        self, chunk: int, start: int, events: Sequence[Event], recalled: Sequence[Any] | None = None
    ) -> None:
        """Prepare `events`, which stand at `start`... of the chunk, with what was recalled for each."""
        self._inbox.put((chunk, start, list(zip(events, recalled or [None] * len(events), strict=True))))

    def stop(self) -> None:
        """Drop what has not begun, and what waits for an outage to end."""
        self._stopping.set()
        with suppress(queue.Empty):
            while True:
                self._inbox.get_nowait()
        for _ in range(self._threads):
            self._inbox.put(None)

    def _main(self) -> None:
        while (work := self._inbox.get()) is not None:
            self._prepare(*work)

    def _prepare(self, chunk: int, start: int, pairs: Sequence[tuple[Event, Any]]) -> None:
        try:
            items = self._patiently(pairs)
        except ConsumerError as error:
            self._post(Failed(error))
        except BaseException as error:
            failure = Fatal(f"the prepare pool failed: {described(error)}")
            failure.__cause__ = error
            self._post(Failed(failure))
        else:
            self._post(Prepared(chunk, start, items))

    def _patiently(self, pairs: Sequence[tuple[Event, Any]]) -> Sequence[Item | BadRecord]:
        """Raises Retry when the pool is stopped during an outage."""
        pause_s = _PAUSE_S
        while True:
            try:
                return [as_item(made) for made in isolate(self._call, pairs, stage="prepare")]
            except Retry as outage:
                log.warning("%s; nothing is lost: tried again in %g s", outage, pause_s)
                if self._stopping.wait(pause_s):
                    raise
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _call(self, pairs: Sequence[tuple[Event, Any]]) -> Sequence[Any]:
        return self._task.prepare([event for event, _ in pairs], [recalled for _, recalled in pairs])
