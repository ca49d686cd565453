"""The prepare pool: CPU-heavy, state-free work on slices of a chunk, on threads of its own.  Knows no Kafka.

Where a task's `prepare` says Retry (what it needs is away), its slice waits and is prepared again, for as long as it
takes: reading pauses when the pipeline is full, and nothing is lost.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence, Set
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


_MEMORY = 64
"""Items over which their cost is taken."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """The items of the events at `start`... of a chunk; a `BadRecord` stands for one that was rejected."""

    chunk: int
    start: int
    items: Sequence[Item | BadRecord]


@dataclass(frozen=True, slots=True)
class _Slice:
    chunk: int
    start: int
    pairs: Sequence[tuple[Event, Any]]


class Pool:
    """Runs `task.prepare`.  `post` takes `Prepared` and `Failed` back to the loop.

    `max_bytes` bounds what is prepared and not yet seen by the device: a record of 1 KB may hold megabytes of pictures,
    so records and their bytes bound nothing here.  Slices wait until there is room, by what items have cost on average
    so far; while nothing is held, one is always prepared, so that nothing can wait for itself.
    Methods are the loop thread's, and never block.
    """

    def __init__(
        self, task: Task, threads: int, max_bytes: int, post: Callable[[Prepared | Failed], None]
    ) -> None:
        self._task = task
        self._post = post
        self._max_bytes = max_bytes
        self._waiting: deque[_Slice] = deque()
        self._inbox: queue.SimpleQueue[_Slice | None] = queue.SimpleQueue()
        self._threads = threads
        self._under_way = 0  # slices
        self._events = 0  # in them
        self._mean: float | None = None  # bytes of an item; what was prepared lately counts most
        self._stopping = threading.Event()
        for number in range(threads):
            # daemons: a `prepare` that hangs must not hold up the end of the process
            threading.Thread(target=self._main, name=f"prepare-{number}", daemon=True).start()

    @property
    def busy(self) -> bool:
        """Whether answers are to come."""
        return self._under_way > 0

    def submit(
        self, chunk: int, start: int, events: Sequence[Event], recalled: Sequence[Any] | None = None
    ) -> None:
        """Prepare `events`, which stand at `start`... of the chunk, with what was recalled for each, in their turn."""
        pairs = list(zip(events, recalled or [None] * len(events), strict=True))
        self._waiting.append(_Slice(chunk, start, pairs))

    def feed(self, held: int) -> None:
        """Give the threads what there is room for, where `held` bytes of prepared items are alive."""
        while self._waiting and self._under_way <= self._threads:
            if (held or self._under_way) and not self._room_for(len(self._waiting[0].pairs), held):
                return
            self._under_way += 1
            self._events += len(self._waiting[0].pairs)
            self._inbox.put(self._waiting.popleft())

    def _room_for(self, events: int, held: int) -> bool:
        """The first slice of all is prepared alone: it tells what items cost."""
        return self._mean is not None and held + self._mean * (self._events + events) <= self._max_bytes

    def done(self, prepared: Prepared) -> int:
        """An answer has arrived.  Returns the bytes of its items."""
        count = len(prepared.items)
        nbytes = sum(item.nbytes for item in prepared.items if isinstance(item, Item))
        self._under_way -= 1
        self._events -= count
        known = nbytes / count if self._mean is None else self._mean
        self._mean = known + (nbytes / count - known) * count / (count + _MEMORY)
        return nbytes

    def drop(self, gone: Set[int]) -> None:
        """Forget what has not begun of these chunks."""
        self._waiting = deque(part for part in self._waiting if part.chunk not in gone)

    def stop(self) -> None:
        """Drop what has not begun, and what waits for an outage to end."""
        self._stopping.set()
        self._waiting.clear()
        with suppress(queue.Empty):
            while True:
                self._inbox.get_nowait()
        for _ in range(self._threads):
            self._inbox.put(None)

    def _main(self) -> None:
        while (work := self._inbox.get()) is not None:
            self._prepare(work)

    def _prepare(self, work: _Slice) -> None:
        try:
            items = self._patiently(work.pairs)
        except ConsumerError as error:
            self._post(Failed(error))
        except BaseException as error:
            failure = Fatal(f"the prepare pool failed: {described(error)}")
            failure.__cause__ = error
            self._post(Failed(failure))
        else:
            self._post(Prepared(work.chunk, work.start, items))

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
