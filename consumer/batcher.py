"""Forms device batches from everything that waits.  Pure: no clock, no thread, no model.

                 by length, each a queue in age order
    runs ──add──►  7: [run run]    31: [run]    128: [run run run]  ──take──►  batch
                             oldest first, then its neighbours in length

The batcher knows places (chunk, position) and costs, not items.  Equal neighbours of a chunk wait as one *run*, so that
a chunk of 5,000 equally cheap events costs one entry, and e-mails of 300 different lengths one each.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from consumer.task import Budget, Item

__all__ = ["Batch", "Batcher", "Run", "runs_of"]


@dataclass(frozen=True, slots=True)
class Run:
    """Equally costly items on consecutive places of a chunk, waiting since `added_ns` (monotonic)."""

    chunk: int
    start: int
    stop: int
    tokens: int
    nbytes: int
    """Of one item."""
    added_ns: int
    order: int = 0
    """Age rank, given by the batcher."""

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Batch:
    """What one device call gets.  Items are in the order of `runs`."""

    number: int
    runs: tuple[Run, ...]
    items: int
    longest: int
    tokens: int
    """Real tokens; `padded_tokens` is what the device computes."""
    reason: str
    """Why it was closed: `items`, `tokens`, `bytes`, `padding`, `idle` (nothing else waited) or `age`."""
    oldest_ns: int

    @property
    def padded_tokens(self) -> int:
        return self.longest * self.items


def runs_of(chunk: int, start: int, items: Sequence[Item | Exception], now_ns: int) -> Iterator[Run]:
    """Group `items`, which stand at `start`... of `chunk`, into runs; rejected ones get no place in any."""
    begin = 0
    while begin < len(items):
        first, end = items[begin], begin + 1
        if isinstance(first, Item):
            while end < len(items) and _same_cost(first, items[end]):
                end += 1
            yield Run(chunk, start + begin, start + end, first.tokens, first.nbytes, now_ns)
        begin = end


def _same_cost(first: Item, other: Item | Exception) -> bool:
    return isinstance(other, Item) and other.tokens == first.tokens and other.nbytes == first.nbytes


class Batcher:
    """Waiting items and the rule that makes batches of them.

    `take` starts with the oldest item, so none starves, and goes on with its neighbours in length, so little is padded.
    """

    # A neighbour that would leave more than this share of the batch as padding waits for a batch of its own length.
    MAX_PADDING_SHARE = 0.25

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.closed: Counter[str] = Counter()
        """How many batches were closed for each reason."""
        self._queues: dict[int, deque[Run]] = {}
        self._lengths: list[int] = []
        self._waiting = 0
        self._added = 0
        self._taken = 0

    def __len__(self) -> int:
        """Items that wait."""
        return self._waiting

    def add(self, run: Run) -> None:
        """Let the items of `run` wait."""
        queue = self._queues.get(run.tokens)
        if queue is None:
            queue = self._queues[run.tokens] = deque()
            insort(self._lengths, run.tokens)
        queue.append(replace(run, order=self._added))
        self._added += 1
        self._waiting += len(run)

    def drop(self, gone: Callable[[int], bool]) -> None:
        """Forget the items of every chunk for whose number `gone` is true."""
        for tokens, queue in list(self._queues.items()):
            self._replace(tokens, deque(run for run in queue if not gone(run.chunk)))
        self._waiting = sum(len(run) for queue in self._queues.values() for run in queue)

    def shrink(self, failed: Batch) -> None:
        """The device had no memory for `failed`: never form one that large again."""
        self.budget = replace(
            self.budget,
            max_batch_items=max(1, failed.items // 2),
            max_batch_tokens=max(failed.longest, failed.padded_tokens // 2),
        )

    def due_ns(self) -> int | None:
        """When the oldest item reaches its age limit (monotonic), None when nothing waits."""
        oldest = self._oldest()
        return None if oldest is None else oldest.added_ns + int(self.budget.max_batch_age_ms * 1e6)

    def take(self, now_ns: int, *, idle: bool) -> Batch | None:
        """The next batch, or None when waiting is better.

        A full batch is always given.  One that is not full is given only to an idle device, once the oldest item has
        waited `max_batch_age_ms`: while the device is busy, company is free.
        """
        oldest = self._oldest()
        if oldest is None:
            return None
        plan, reason = self._plan(oldest)
        if reason not in ("items", "tokens", "bytes"):
            if not idle or now_ns < oldest.added_ns + int(self.budget.max_batch_age_ms * 1e6):
                return None
            if reason == "idle" and self.budget.max_batch_age_ms > 0:
                reason = "age"
        return self._close(plan, reason)

    def _oldest(self) -> Run | None:
        return min((queue[0] for queue in self._queues.values()), key=lambda run: run.order, default=None)

    def _plan(self, oldest: Run) -> tuple[list[Run], str]:
        """Which items to take, and what ended the search."""
        room = _Room(self.budget, self.MAX_PADDING_SHARE)
        plan: list[Run] = []
        for tokens in self._neighbours(oldest.tokens):
            for run in self._queues[tokens]:
                fits, limit = room.fit(run)
                if fits:
                    plan.append(replace(run, stop=run.start + fits))
                if limit == "padding":
                    break  # the other side may hold closer ones
                if limit:
                    return plan, limit
        return plan, "padding" if room.padded else "idle"

    def _neighbours(self, tokens: int) -> Iterator[int]:
        """All lengths, the nearest to `tokens` first."""
        lengths = self._lengths
        high = bisect_left(lengths, tokens)
        low = high - 1
        while low >= 0 or high < len(lengths):
            if low < 0 or (high < len(lengths) and lengths[high] - tokens <= tokens - lengths[low]):
                yield lengths[high]
                high += 1
            else:
                yield lengths[low]
                low -= 1

    def _close(self, plan: list[Run], reason: str) -> Batch:
        for tokens in {run.tokens for run in plan}:
            queue = self._queues[tokens]
            for run in (run for run in plan if run.tokens == tokens):
                whole = queue.popleft()
                if len(run) < len(whole):
                    queue.appendleft(replace(whole, start=run.stop))
            self._replace(tokens, queue)
        items = sum(map(len, plan))
        self._waiting -= items
        self._taken += 1
        self.closed[reason] += 1
        return Batch(
            number=self._taken,
            runs=tuple(plan),
            items=items,
            longest=max(run.tokens for run in plan),
            tokens=sum(len(run) * run.tokens for run in plan),
            reason=reason,
            oldest_ns=min(run.added_ns for run in plan),
        )

    def _replace(self, tokens: int, queue: deque[Run]) -> None:
        if queue:
            self._queues[tokens] = queue
        else:
            del self._queues[tokens]
            self._lengths.remove(tokens)


class _Room:
    """What is left of the budget while one batch is planned."""

    def __init__(self, budget: Budget, max_padding_share: float) -> None:
        self._budget = budget
        self._max_padding_share = max_padding_share
        self._items = 0
        self._tokens = 0
        self._nbytes = 0
        self._longest = 0
        self.padded = False
        """Whether something was left out for its padding alone."""

    def fit(self, run: Run) -> tuple[int, str]:
        """How many items of `run` still fit (and count them in), and the limit that stopped the rest, if any."""
        budget, longest = self._budget, max(self._longest, run.tokens)
        limits = {"items": budget.max_batch_items - self._items}
        if budget.max_batch_tokens is not None:
            limits["tokens"] = budget.max_batch_tokens // max(longest, 1) - self._items
        if budget.max_batch_bytes is not None and run.nbytes:
            limits["bytes"] = (budget.max_batch_bytes - self._nbytes) // run.nbytes
        reason = min(limits, key=lambda name: limits[name])
        count = min(len(run), max(0, limits[reason]))
        if self._items == 0:
            count = max(count, 1)  # an item over the limits must get through alone, or it would wait for ever
        elif count and self._pads_too_much(count, run.tokens, longest):
            self.padded = True
            return 0, "padding"
        self._items += count
        self._tokens += count * run.tokens
        self._nbytes += count * run.nbytes
        self._longest = longest if count else self._longest
        return count, "" if count == len(run) else reason

    def _pads_too_much(self, count: int, tokens: int, longest: int) -> bool:
        padded = longest * (self._items + count)
        return padded - self._tokens - count * tokens > self._max_padding_share * padded
