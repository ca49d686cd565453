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
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heappush

from consumer.task import Budget, Item

__all__ = ["Batch", "Batcher", "Run", "runs_of"]

# Of what the device computes in one batch, at most this share may be padding.
MAX_PADDING_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class Run:
    """Equally costly items on consecutive places of a chunk, waiting since `added_ns` (monotonic)."""

    chunk: int
    start: int
    stop: int
    tokens: int
    """Of one item, at least 1."""
    nbytes: int
    """Of one item."""
    added_ns: int

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
    """Why it was closed.  Full: `items`, `tokens`, `bytes`.  Not full: `padding` (what waits beside it would pad too
    much), `age` (the oldest item was due), `idle` (nothing else waited and no waiting is allowed)."""
    oldest_ns: int

    @property
    def padded_tokens(self) -> int:
        return self.longest * self.items


def runs_of(chunk: int, start: int, items: Sequence[Item | Exception], now_ns: int) -> Iterator[Run]:
    """Group `items`, which stand at `start`... of `chunk`, into runs; rejected ones get no place in any."""
    begin, count = 0, len(items)
    while begin < count:
        first, end = items[begin], begin + 1
        if isinstance(first, Item):
            tokens, nbytes = first.tokens, first.nbytes
            while end < count and isinstance(other := items[end], Item):
                if other.tokens != tokens or other.nbytes != nbytes:
                    break
                end += 1
            yield Run(chunk, start + begin, start + end, max(tokens, 1), nbytes, now_ns)
        begin = end


class Batcher:
    """Waiting items and the rule that makes batches of them.

    `take` starts with the oldest item, so none starves, and goes on with its neighbours in length, so little is padded.
    Age is the order of chunks, for in that order they leave; a chunk that is prepared late still goes first.
    """

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.closed: Counter[str] = Counter()
        """How many batches were closed for each reason."""
        self._queues: dict[int, deque[Run]] = {}
        self._lengths: list[int] = []
        self._ages: list[tuple[int, int, int]] = []
        """A heap of (chunk, start, tokens) of all runs; those taken meanwhile are skipped when they come up."""
        self._items = 0
        self._tokens = 0
        self._short = False
        """Whether what waits was found to make no full batch, and nothing has come since."""
        self._taken = 0

    def __len__(self) -> int:
        """Items that wait."""
        return self._items

    def add(self, run: Run) -> None:
        """Let the items of `run` wait."""
        queue = self._queues.get(run.tokens)
        if queue is None:
            queue = self._queues[run.tokens] = deque()
            insort(self._lengths, run.tokens)
        place, age = len(queue), (run.chunk, run.start)
        while place and (queue[place - 1].chunk, queue[place - 1].start) > age:
            place -= 1  # its chunk was prepared later than a younger one
        queue.insert(place, run)
        heappush(self._ages, (*age, run.tokens))
        self._items += len(run)
        self._tokens += len(run) * run.tokens
        self._short = False

    def drop(self, gone: Callable[[int], bool]) -> None:
        """Forget the items of every chunk for whose number `gone` is true."""
        kept = [run for queue in self._queues.values() for run in queue if not gone(run.chunk)]
        self._queues = {}
        for run in kept:
            self._queues.setdefault(run.tokens, deque()).append(run)
        self._lengths = sorted(self._queues)
        self._ages = [(run.chunk, run.start, run.tokens) for run in kept]
        heapify(self._ages)
        self._items = sum(map(len, kept))
        self._tokens = sum(len(run) * run.tokens for run in kept)
        self._short = False

    def shrink(self, failed: Batch) -> None:
        """The device had no memory for `failed`: form none that large again.

        One item that fails alone says nothing about batches and changes nothing.
        """
        if failed.items > 1:
            limit = failed.padded_tokens // 2
            if self.budget.max_batch_tokens is not None:
                limit = min(limit, self.budget.max_batch_tokens)
            self.budget = replace(self.budget, max_batch_tokens=limit)
            self._short = False

    def due_ns(self) -> int | None:
        """When the oldest item reaches its age limit (monotonic), None when nothing waits."""
        oldest = self._oldest()
        return None if oldest is None else oldest.added_ns + int(self.budget.max_batch_age_ms * 1e6)

    def take(self, now_ns: int, *, idle: bool) -> Batch | None:
        """The next batch, or None when waiting is better.

        A full batch is always given, and so is the oldest item with what goes well with it when more than a whole batch
        waits behind it.  Else company is worth waiting for: as long as the device is busy, and when it is `idle` until
        the oldest item has waited `max_batch_age_ms`.
        """
        oldest = self._oldest()
        if oldest is None:
            return None
        max_age_ns = int(self.budget.max_batch_age_ms * 1e6)
        due = idle and now_ns >= oldest.added_ns + max_age_ns
        if self._short and not due:
            return None
        plan = self._plan(oldest)
        if not (plan.full or due or self._more_than_a_batch_beside(plan)):
            self._short = True
            return None
        short_of = "padding" if plan.left_out else "age" if max_age_ns else "idle"
        return self._close(plan, plan.full or short_of)

    def _oldest(self) -> Run | None:
        while self._ages:
            chunk, start, tokens = self._ages[0]
            queue = self._queues.get(tokens)
            if queue and queue[0].chunk == chunk and queue[0].start == start:
                return queue[0]
            heappop(self._ages)
        return None

    def _plan(self, oldest: Run) -> _Plan:
        """Which items to take: the oldest, then by growing distance in length, to each side while it is worth it."""
        plan, lengths, middle = _Plan(self.budget), self._lengths, oldest.tokens
        above = bisect_left(lengths, middle)
        below, top = above - 1, len(lengths)
        while not plan.full and (above < top or below >= 0):
            if below < 0 or (above < top and lengths[above] - middle <= middle - lengths[below]):
                goes_on = plan.extend(self._queues[lengths[above]])
                above = above + 1 if goes_on else top
            else:
                goes_on = plan.extend(self._queues[lengths[below]])
                below = below - 1 if goes_on else -1
        return plan

    def _more_than_a_batch_beside(self, plan: _Plan) -> bool:
        limit = self.budget.max_batch_tokens
        return self._items - plan.items >= self.budget.max_batch_items or (
            limit is not None and self._tokens - plan.tokens >= limit
        )

    def _close(self, plan: _Plan, reason: str) -> Batch:
        for run in plan.runs:
            queue = self._queues[run.tokens]
            whole = queue.popleft()
            if len(run) < len(whole):
                queue.appendleft(replace(whole, start=run.stop))
                heappush(self._ages, (run.chunk, run.stop, run.tokens))
            elif not queue:
                del self._queues[run.tokens]
                del self._lengths[bisect_left(self._lengths, run.tokens)]
        self._items -= plan.items
        self._tokens -= plan.tokens
        self._taken += 1
        self.closed[reason] += 1
        return Batch(
            number=self._taken,
            runs=tuple(plan.runs),
            items=plan.items,
            longest=plan.longest,
            tokens=plan.tokens,
            reason=reason,
            oldest_ns=min(run.added_ns for run in plan.runs),
        )


class _Plan:
    """A batch in the making."""

    __slots__ = ("_budget", "_nbytes", "full", "items", "left_out", "longest", "runs", "tokens")

    def __init__(self, budget: Budget) -> None:
        self.runs: list[Run] = []
        self.items = 0
        self.tokens = 0
        self.longest = 0
        self.full = ""
        """The limit that it has reached, if any."""
        self.left_out = False
        """Whether something was left out because it would pad too much."""
        self._budget = budget
        self._nbytes = 0

    def extend(self, queue: Iterable[Run]) -> bool:
        """Take from waiting items of one length, oldest first; False when lengths further off are not worth a look."""
        for run in queue:
            count = self._fits(run)
            if count:
                self.runs.append(run if count == len(run) else replace(run, stop=run.start + count))
                self.items += count
                self.tokens += count * run.tokens
                self._nbytes += count * run.nbytes
                self.longest = max(self.longest, run.tokens)
                self.full = self.full or self._limit_reached()
            if self.full:
                return False
            if count < len(run):
                self.left_out = True
                return False
        return True

    def _fits(self, run: Run) -> int:
        """How many items of `run` can be added."""
        budget, longest = self._budget, max(self.longest, run.tokens)
        count = min(len(run), budget.max_batch_items - self.items)
        if budget.max_batch_tokens is not None:
            count = min(count, budget.max_batch_tokens // longest - self.items)
        if self.items:
            count = min(count, self._fits_unpadded(run.tokens, len(run)))
        if budget.max_batch_bytes is not None and run.nbytes:
            by_bytes = (budget.max_batch_bytes - self._nbytes) // run.nbytes
            if by_bytes < count:
                self.full, count = "bytes", by_bytes
        # An item over the limits must get through alone, or it would wait for ever.
        return max(count, 0 if self.items else 1)

    def _fits_unpadded(self, tokens: int, wanted: int) -> int:
        """How many items of this length keep the padding within its share."""
        padded = self.longest * self.items
        if tokens > self.longest:
            # It pads all the others: if the first is worth that, the next are all the more.
            pads = tokens * self.items - self.tokens
            return wanted if pads <= MAX_PADDING_SHARE * tokens * (self.items + 1) else 0
        each = (1 - MAX_PADDING_SHARE) * self.longest - tokens
        spare = MAX_PADDING_SHARE * padded - (padded - self.tokens)
        return wanted if each <= 0 else min(wanted, int(spare // each))

    def _limit_reached(self) -> str:
        budget = self._budget
        if self.items >= budget.max_batch_items:
            return "items"
        if budget.max_batch_tokens is not None and (self.items + 1) * self.longest > budget.max_batch_tokens:
            return "tokens"
        if budget.max_batch_bytes is not None and self._nbytes >= max(budget.max_batch_bytes, 1):
            return "bytes"
        return ""
