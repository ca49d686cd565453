"""The batcher: nothing lost, nothing twice, no budget broken, nobody starved, little padding."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from consumer.batcher import MAX_PADDING_SHARE, Batch, Batcher, Run, runs_of
from consumer.errors import BadRecord
from consumer.task import Budget, Item

MS = 1_000_000
REASONS = {"items", "tokens", "bytes", "padding", "age", "idle"}
LIMIT = st.none() | st.integers(1, 60)
ITEM = st.builds(Item, st.none(), st.integers(0, 40), st.integers(0, 40))
BUDGETS = st.builds(Budget, st.integers(1, 12), LIMIT, LIMIT, st.sampled_from([0.0, 5.0, 50.0]))

Place = tuple[int, int]


def places_of(batch: Batch) -> list[Place]:
    return [(run.chunk, place) for run in batch.runs for place in range(run.start, run.stop)]


def batcher_of(budget: Budget, *chunks: list[Item], added_ns: int = 0) -> Batcher:
    """A batcher in which these chunks, numbered from 0, wait."""
    batcher = Batcher(budget)
    for number, items in enumerate(chunks):
        for run in runs_of(number, 0, items, added_ns):
            batcher.add(run)
    return batcher


def of_lengths(*lengths: int) -> list[Item]:
    return [Item(None, tokens) for tokens in lengths]


def lengths_of(batch: Batch) -> list[int]:
    return [run.tokens for run in batch.runs for _ in range(len(run))]


def drain(batcher: Batcher, now_ns: int = 0) -> list[Batch]:
    batches = []
    while (batch := batcher.take(now_ns, idle=True)) is not None:
        batches.append(batch)
    return batches


def check_limits(batch: Batch, budget: Budget, items: dict[Place, Item]) -> None:
    """The hard limits; only a single item may be above them, alone."""
    own = [items[place] for place in places_of(batch)]
    lengths = [max(1, item.tokens) for item in own]
    assert batch.items == len(own) > 0
    assert batch.longest == max(lengths)
    assert batch.tokens == sum(lengths)
    assert batch.padded_tokens == max(lengths) * len(own)
    assert batch.padded_tokens - batch.tokens <= MAX_PADDING_SHARE * batch.padded_tokens
    if batch.items > 1:
        assert batch.items <= budget.max_batch_items
        assert budget.max_batch_tokens is None or batch.padded_tokens <= budget.max_batch_tokens
        assert budget.max_batch_bytes is None or sum(i.nbytes for i in own) <= budget.max_batch_bytes


class BatcherMachine(RuleBasedStateMachine):
    """Random items, chunk sizes, lengths, bytes, times, lost chunks and a shrinking device against a plain model."""

    @initialize(budget=BUDGETS)
    def begin(self, budget: Budget) -> None:
        self.batcher = Batcher(budget)
        self.items: dict[Place, Item] = {}
        self.waiting: dict[Place, int] = {}
        self.late: list[tuple[int, int, list[Item], int]] = []
        self.taken: list[Batch] = []
        self.now_ns = 0
        self.chunks = 0

    def admit(self, chunk: int, start: int, items: list[Item], added_ns: int) -> None:
        for place, item in enumerate(items, start):
            self.items[chunk, place] = item
            self.waiting[chunk, place] = added_ns
        for run in runs_of(chunk, start, items, added_ns):
            self.batcher.add(run)

    @rule(items=st.lists(ITEM, min_size=1, max_size=20), late=st.booleans(), start=st.integers(0, 3))
    def chunk_comes(self, items: list[Item], late: bool, start: int) -> None:
        self.chunks += 1
        chunk = (self.chunks, start, items, self.now_ns)
        if late:
            self.late.append(chunk)
        else:
            self.admit(*chunk)

    @precondition(lambda self: self.late)
    @rule(data=st.data())
    def chunk_is_prepared_late(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.late) - 1))
        self.admit(*self.late.pop(index))

    @rule(ms=st.integers(1, 60))
    def time_goes_by(self, ms: int) -> None:
        self.now_ns += ms * MS

    @rule(idle=st.booleans())
    def take(self, idle: bool) -> None:
        due_ns = self.batcher.due_ns()
        batch = self.batcher.take(self.now_ns, idle=idle)
        if batch is None:
            assert due_ns is None or not idle or self.now_ns < due_ns
            return
        self.check(batch)
        if batch.reason in ("age", "idle"):
            assert idle and due_ns is not None and self.now_ns >= due_ns

    def check(self, batch: Batch) -> None:
        assert self.waiting, "a batch of nothing"
        taken = places_of(batch)
        oldest = min(self.waiting)
        assert oldest in taken, f"{oldest} starves"
        assert len(set(taken)) == len(taken)
        check_limits(batch, self.batcher.budget, self.items)
        assert batch.oldest_ns == min(self.waiting[place] for place in taken)
        for place in taken:
            del self.waiting[place]  # KeyError: taken twice, or dropped before
        assert batch.reason in REASONS
        self.taken.append(batch)
        assert self.batcher.closed.total() == batch.number == len(self.taken)

    @rule(ms=st.integers(50, 100))
    def time_and_an_idle_device(self, ms: int) -> None:
        """Once time is given and the device is idle, nothing is older than the age limit."""
        self.now_ns += ms * MS
        while (batch := self.batcher.take(self.now_ns, idle=True)) is not None:
            self.check(batch)
        limit_ns = int(self.batcher.budget.max_batch_age_ms * MS)
        assert all(self.now_ns - added_ns < limit_ns for added_ns in self.waiting.values())

    @rule(data=st.data())
    def partition_goes(self, data: st.DataObject) -> None:
        gone = data.draw(st.sets(st.integers(1, max(self.chunks, 1))))
        self.batcher.drop(gone.__contains__)
        self.waiting = {place: ns for place, ns in self.waiting.items() if place[0] not in gone}

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def out_of_memory(self, data: st.DataObject) -> None:
        failed = data.draw(st.sampled_from(self.taken))
        before = self.batcher.budget
        self.batcher.shrink(failed)
        after = self.batcher.budget
        assert (after.max_batch_tokens or 0) <= (before.max_batch_tokens or failed.padded_tokens)
        if failed.items > 1:
            assert after.max_batch_tokens is not None
            assert after.max_batch_tokens < failed.padded_tokens
            assert after.max_batch_tokens >= 1

    @invariant()
    def counts(self) -> None:
        assert len(self.batcher) == len(self.waiting)
        due_ns = self.batcher.due_ns()
        if self.waiting:
            oldest_ns = self.waiting[min(self.waiting)]
            assert due_ns == oldest_ns + int(self.batcher.budget.max_batch_age_ms * MS)
        else:
            assert due_ns is None

    def teardown(self) -> None:
        if not hasattr(self, "batcher"):
            return
        for late in self.late:
            self.admit(*late)
        self.now_ns += 100 * MS
        while (batch := self.batcher.take(self.now_ns, idle=True)) is not None:
            self.check(batch)
        assert not self.waiting, "lost"


BatcherMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestBatcherMachine = BatcherMachine.TestCase


@given(
    made=st.lists(st.lists(ITEM | st.builds(BadRecord, st.just("no")), max_size=30), max_size=5),
    budget=BUDGETS,
)
def test_every_item_is_in_exactly_one_batch_and_no_rejected_one(
    made: list[list[Item | BadRecord]], budget: Budget
) -> None:
    batcher = Batcher(budget)
    items: dict[Place, Item] = {}
    for chunk, places in enumerate(made):
        items |= {(chunk, i): item for i, item in enumerate(places) if isinstance(item, Item)}
        for run in runs_of(chunk, 0, places, 0):
            batcher.add(run)
    batches = drain(batcher, 1_000 * MS)
    for batch in batches:
        check_limits(batch, budget, items)
    assert sorted(place for batch in batches for place in places_of(batch)) == sorted(items)


@given(lengths=st.lists(st.integers(1, 8), min_size=1, max_size=60), cuts=st.sets(st.integers(1, 60)))
def test_how_items_are_grouped_into_runs_changes_no_batch(lengths: list[int], cuts: set[int]) -> None:
    budget = Budget(max_batch_items=7, max_batch_tokens=30)
    whole, cut = Batcher(budget), Batcher(budget)
    for run in runs_of(1, 0, of_lengths(*lengths), 0):
        whole.add(run)
        edges = [run.start, *(c for c in sorted(cuts) if run.start < c < run.stop), run.stop]
        for start, stop in pairwise(edges):
            cut.add(replace(run, start=start, stop=stop))
    assert [sorted(places_of(b)) for b in drain(whole)] == [sorted(places_of(b)) for b in drain(cut)]


def test_a_run_is_a_stretch_of_equal_cost() -> None:
    items: list[Item | Exception] = [
        Item("a", 3, 9),
        Item("b", 3, 9),
        BadRecord("no"),
        Item("c", 3, 9),
        Item("d", 4, 9),
        Item("e", 4, 8),
    ]
    runs = list(runs_of(5, 100, items, 42))
    assert runs == [
        Run(5, 100, 102, 3, 9, 42),
        Run(5, 103, 104, 3, 9, 42),
        Run(5, 104, 105, 4, 9, 42),
        Run(5, 105, 106, 4, 8, 42),
    ]


def test_a_large_uniform_chunk_is_one_run() -> None:
    assert len(list(runs_of(1, 0, [Item(None)] * 5_000, 0))) == 1


def test_neighbours_in_length_share_a_batch_and_the_oldest_comes_first() -> None:
    batcher = batcher_of(Budget(max_batch_items=4), of_lengths(50, 9, 48, 10, 49, 8, 47, 11))
    assert [sorted(lengths_of(batch)) for batch in drain(batcher)] == [[47, 48, 49, 50], [8, 9, 10, 11]]


def test_lengths_are_taken_on_both_sides_of_the_oldest() -> None:
    batcher = batcher_of(Budget(max_batch_items=5), of_lengths(100, 103, 99, 98, 102, 101, 97))
    batch = batcher.take(0, idle=False)
    assert batch is not None
    assert lengths_of(batch) == [100, 101, 99, 102, 98]


def test_a_long_neighbour_does_not_close_a_batch_that_others_fit_into() -> None:
    """900 tokens are too long for a batch of ten short ones, but twenty more short ones are not."""
    batcher = batcher_of(Budget(max_batch_tokens=1_000), of_lengths(*[10] * 10, *[900], *[9] * 20))
    assert batcher.take(0, idle=False) is None
    first = batcher.take(0, idle=True)
    assert first is not None
    assert first.items == 30 and first.longest == 10


def test_ties_in_age_do_not_matter_but_a_chunk_prepared_late_still_goes_first() -> None:
    batcher = Batcher(Budget(max_batch_items=1))
    batcher.add(Run(2, 0, 1, 5, 0, 20))
    batcher.add(Run(1, 8, 9, 5, 0, 10))
    batcher.add(Run(1, 0, 1, 7, 0, 10))
    assert batcher.due_ns() == 10
    assert [places_of(batch) for batch in drain(batcher, 100)] == [[(1, 0)], [(1, 8)], [(2, 0)]]


def test_a_full_batch_is_given_to_a_busy_device() -> None:
    batcher = batcher_of(Budget(max_batch_items=3, max_batch_age_ms=50), of_lengths(1, 1, 1, 1))
    batch = batcher.take(0, idle=False)
    assert batch is not None
    assert (batch.items, batch.reason) == (3, "items")
    assert batcher.take(0, idle=False) is None
    assert len(batcher) == 1


def test_a_batch_that_is_exactly_full_is_full() -> None:
    for budget, reason in (
        (Budget(max_batch_items=3), "items"),
        (Budget(max_batch_tokens=12), "tokens"),
        (Budget(max_batch_tokens=14), "tokens"),
        (Budget(max_batch_bytes=21), "bytes"),
    ):
        batcher = batcher_of(budget, [Item(None, 4, 7)] * 3)
        batch = batcher.take(0, idle=False)
        assert batch is not None, budget
        assert (batch.items, batch.reason) == (3, reason)


def test_a_batch_that_is_not_full_waits_for_company_then_for_its_age() -> None:
    batcher = batcher_of(Budget(max_batch_age_ms=5), of_lengths(1), added_ns=100)
    assert batcher.take(100 + 5 * MS - 1, idle=True) is None
    assert batcher.take(10**12, idle=False) is None
    batch = batcher.take(100 + 5 * MS, idle=True)
    assert batch is not None
    assert (batch.reason, batch.oldest_ns) == ("age", 100)


def test_without_an_age_an_idle_device_gets_what_there_is() -> None:
    batcher = batcher_of(Budget(), of_lengths(1, 1))
    assert batcher.take(0, idle=False) is None
    batch = batcher.take(0, idle=True)
    assert batch is not None
    assert (batch.items, batch.reason) == (2, "idle")


def test_company_that_comes_later_is_noticed_though_the_batch_was_short_before() -> None:
    batcher = batcher_of(Budget(max_batch_items=2, max_batch_age_ms=50), of_lengths(1))
    assert batcher.take(0, idle=True) is None
    batcher.add(Run(7, 0, 1, 1, 0, 1))
    batch = batcher.take(1, idle=False)
    assert batch is not None
    assert batch.items == 2


def test_one_odd_item_holds_up_no_backlog() -> None:
    """The oldest goes alone, at once, when a whole batch waits behind it: a device must not idle for its age limit."""
    budget = Budget(max_batch_items=8, max_batch_age_ms=1_000)
    short = batcher_of(budget, of_lengths(500, *[10] * 7))
    assert short.take(0, idle=True) is None
    backlog = batcher_of(budget, of_lengths(500, *[10] * 8))
    first, second = backlog.take(0, idle=False), backlog.take(0, idle=False)
    assert first is not None and second is not None
    assert (lengths_of(first), first.reason) == ([500], "padding")
    assert (second.items, second.reason) == (8, "items")


def test_an_item_over_a_limit_travels_alone() -> None:
    for budget in (Budget(max_batch_tokens=10), Budget(max_batch_bytes=10), Budget(max_batch_bytes=0)):
        batcher = batcher_of(budget, [Item(None, 11, 11)] * 3)
        assert [batch.items for batch in drain(batcher)] == [1, 1, 1]


def test_items_of_no_tokens_and_no_bytes_cost_one_token() -> None:
    batcher = batcher_of(Budget(max_batch_tokens=4, max_batch_bytes=1), [Item(None, 0, 0)] * 6)
    assert [batch.items for batch in drain(batcher)] == [4, 2]


def test_bytes_close_a_batch() -> None:
    batcher = batcher_of(Budget(max_batch_bytes=100), [Item(None, 1, 40)] * 3)
    batch = batcher.take(0, idle=False)
    assert batch is not None
    assert (batch.items, batch.reason) == (2, "bytes")


def test_reasons_are_counted() -> None:
    batcher = batcher_of(Budget(max_batch_items=2), of_lengths(1, 1, 1))
    drain(batcher)
    assert batcher.closed == {"items": 1, "idle": 1}


def test_dropped_chunks_are_forgotten_wherever_their_items_wait() -> None:
    batcher = batcher_of(Budget(), of_lengths(5, 6, 7), of_lengths(5, 6, 8), of_lengths(6, 9))
    batcher.drop({0, 2}.__contains__)
    assert len(batcher) == 3
    assert sorted(place for batch in drain(batcher) for place in places_of(batch)) == [(1, 0), (1, 1), (1, 2)]
    batcher.drop(lambda chunk: True)
    assert batcher.due_ns() is None and batcher.take(0, idle=True) is None


def test_the_rest_of_a_cut_run_is_dropped_too() -> None:
    batcher = batcher_of(Budget(max_batch_items=2), of_lengths(1, 1, 1))
    batcher.take(0, idle=True)
    batcher.drop({0}.__contains__)
    assert len(batcher) == 0 and batcher.take(0, idle=True) is None


def failed(items: int, longest: int) -> Batch:
    run = Run(1, 0, items, longest, 0, 0)
    return Batch(1, (run,), items, longest, items * longest, "items", 0)


def test_after_out_of_memory_batches_are_half_as_large() -> None:
    batcher = batcher_of(Budget(max_batch_items=8), of_lengths(*[10] * 8))
    batcher.shrink(failed(items=8, longest=10))
    assert [batch.items for batch in drain(batcher)] == [4, 4]


def test_a_batch_formed_before_does_not_widen_the_budget_again() -> None:
    batcher = Batcher(Budget(max_batch_items=100))
    batcher.shrink(failed(items=10, longest=10))
    batcher.shrink(failed(items=100, longest=10))
    assert batcher.budget.max_batch_tokens == 50


def test_one_item_that_fails_alone_does_not_shrink_the_batches_of_others() -> None:
    budget = Budget(max_batch_items=100, max_batch_tokens=1_000)
    batcher = Batcher(budget)
    batcher.shrink(failed(items=1, longest=999))
    assert batcher.budget == budget


@pytest.mark.parametrize("items", [2, 3, 7])
def test_shrinking_again_and_again_ends_at_one_item(items: int) -> None:
    batcher = Batcher(Budget(max_batch_items=items))
    for _ in range(10):
        for run in runs_of(1, 0, of_lengths(*[10] * items), 0):
            batcher.add(run)
        batches = drain(batcher)
        if all(batch.items == 1 for batch in batches):
            return
        batcher.shrink(batches[0])
    pytest.fail(f"still {batcher.budget}")


@pytest.mark.parametrize("dropped", [False, True])
def test_what_was_taken_or_dropped_is_no_backlog_any_more(dropped: bool) -> None:
    batcher = batcher_of(Budget(max_batch_tokens=100), of_lengths(*[10] * 50))
    if dropped:
        batcher.drop({0}.__contains__)
    else:
        drain(batcher)
    for run in runs_of(1, 0, of_lengths(40, 10, 10), 0):
        batcher.add(run)
    assert batcher.take(0, idle=False) is None
    assert batcher.take(0, idle=True) is not None
