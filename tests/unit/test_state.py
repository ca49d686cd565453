"""Keyed state: whatever is crashed, cut into chunks or restored, it equals a replay of the committed input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumer.errors import BadRecord
from consumer.records import Change
from consumer.state import Store
from consumer.task import State

HERE = ("clicks", 0)
TTL_MS = 50


@dataclass(frozen=True, slots=True)
class Rec:
    """A record as the store sees one; `does` is what happens to the state."""

    name: bytes | None
    does: str
    at_ms: int = 0

    def topic(self) -> str:
        return HERE[0]

    def partition(self) -> int:
        return HERE[1]

    def key(self) -> bytes | None:
        return self.name

    def timestamp(self) -> tuple[int, int]:
        return 1, self.at_ms


def act(store: Store, phase: Any, rec: Rec) -> Any:
    """What a task could do with its state; the answer says all that it saw."""

    def call(state: State) -> Any:
        part = state.part(f"{rec.at_ms % 3}")
        saw = dict(state), dict(state.partition), dict(part)
        state["n"] = state.get("n", 0) + 1
        state.partition["n"] = state.partition.get("n", 0) + 1
        part["n"] = part.get("n", 0) + 1
        if rec.does == "forget":
            state.clear()
            part.clear()
        if rec.does == "fail":
            raise ValueError("asked to")
        return saw

    try:
        return store.use(phase, rec, call)  # type: ignore[arg-type]  # all that the store asks of a record
    except (ValueError, BadRecord) as error:
        return type(error).__name__


class Kafka:
    """A changelog with its compaction, and the offset that was committed with it."""

    def __init__(self) -> None:
        self.rows: list[tuple[bytes, bytes | None, int]] = []
        self.offset = 0
        self.answers: list[Any] = []

    def commit(self, changes: Sequence[Change], offset: int, answers: Sequence[Any]) -> None:
        self.rows += [(c.key, c.value, c.timestamp_ms) for c in changes]
        self.offset = offset
        self.answers += answers

    def compacted(self) -> list[tuple[bytes, bytes | None, int]]:
        """The last row of each key, in the order of the rows that stay."""
        last = {key: place for place, (key, _, _) in enumerate(self.rows)}
        return [self.rows[place] for place in sorted(last.values())]


def started(kafka: Kafka, *, ttl_ms: int | None) -> Store:
    store = Store(ttl_ms=ttl_ms)
    store.open(HERE, 1)
    store.load(HERE, kafka.compacted())
    return store


def run(recs: Sequence[Rec], chunks: Sequence[int], crashes: frozenset[int], ttl_ms: int | None) -> Kafka:
    """Read `recs` in chunks; recall runs one chunk ahead of finish; the worker crashes before some commits."""
    kafka = Kafka()
    ends = list(chunks)
    turn = 0
    while kafka.offset < len(recs):
        store = started(kafka, ttl_ms=ttl_ms)
        waiting: list[tuple[int, int, list[Any], list[Change]]] = []
        at = kafka.offset
        while at < len(recs) or waiting:
            turn += 1
            if at < len(recs):
                end = min(len(recs), at + ends[turn % len(ends)])
                seen = [act(store, "recall", rec) for rec in recs[at:end]]
                waiting.append((at, end, seen, store.take()))
                at = end
            if len(waiting) < 2 and at < len(recs):
                continue
            begin, end, seen, changes = waiting.pop(0)
            answers = [(s, act(store, "finish", rec)) for s, rec in zip(seen, recs[begin:end], strict=True)]
            changes = changes + store.take()
            if turn in crashes:
                break
            kafka.commit(changes, end, answers)
    return kafka


recs_st = st.lists(
    st.builds(
        Rec,
        st.sampled_from([b"a", b"b", b"c", b"a:b", None]),
        st.sampled_from(["count", "count", "count", "forget", "fail"]),
        st.integers(0, 300),
    ),
    max_size=40,
)


@given(
    recs_st,
    st.lists(st.integers(1, 7), min_size=1, max_size=5),
    st.frozensets(st.integers(1, 60), max_size=20),
    st.sampled_from([None, TTL_MS]),
)
@settings(max_examples=400, deadline=None)
def test_crashes_and_chunks_change_nothing(
    recs: list[Rec], chunks: list[int], crashes: frozenset[int], ttl_ms: int | None
) -> None:
    """What each event saw, and what is left in the end, is that of one worker that never crashed."""
    crashed = run(recs, chunks, crashes, ttl_ms)
    calm = run(recs, [1], frozenset(), ttl_ms)
    assert crashed.answers == calm.answers
    assert started(crashed, ttl_ms=ttl_ms).contents(HERE) == started(calm, ttl_ms=ttl_ms).contents(HERE)


@given(recs_st, st.sampled_from([None, TTL_MS]))
def test_what_is_restored_is_what_there_was(recs: list[Rec], ttl_ms: int | None) -> None:
    store = started(Kafka(), ttl_ms=ttl_ms)
    kafka = Kafka()
    for rec in recs:
        act(store, "recall", rec)
        act(store, "finish", rec)
    kafka.commit(store.take(), len(recs), [])
    again = started(kafka, ttl_ms=ttl_ms)
    assert again.contents(HERE) == store.contents(HERE)
    if ttl_ms is None:
        assert (len(again), again.nbytes) == (len(store), store.nbytes)


def test_recall_and_finish_do_not_see_each_other() -> None:
    store = started(Kafka(), ttl_ms=None)
    assert act(store, "recall", Rec(b"a", "count")) == ({}, {}, {})
    assert act(store, "finish", Rec(b"a", "count")) == ({}, {}, {})
    assert act(store, "recall", Rec(b"a", "count")) == ({"n": 1}, {"n": 1}, {"n": 1})


def test_an_old_epoch_holds_nothing() -> None:
    store = started(Kafka(), ttl_ms=None)
    act(store, "recall", Rec(b"a", "count"))
    assert store.holds(HERE, 1)
    store.open(HERE, 2)
    assert not store.holds(HERE, 1)
    assert act(store, "recall", Rec(b"a", "count")) == ({}, {}, {})
    store.drop(HERE)
    assert not store.holds(HERE, 2)
    assert store.nbytes == 0


@pytest.mark.parametrize("value", [object(), {1: 2}.keys(), "\ud800"], ids=["object", "view", "surrogate"])
def test_a_state_that_is_not_json_is_refused(value: Any) -> None:
    store = started(Kafka(), ttl_ms=None)
    act(store, "recall", Rec(b"a", "count"))

    def call(state: State) -> None:
        state["value"] = value

    with pytest.raises(BadRecord) as refused:
        store.use("recall", Rec(b"a", "count"), call)  # type: ignore[arg-type]
    assert refused.value.reason == "state_does_not_fit"
    assert act(store, "recall", Rec(b"a", "count"))[0] == {"n": 1}


def test_a_state_may_not_grow_beyond_its_limit() -> None:
    store = Store(max_value_bytes=100)
    store.open(HERE, 1)

    def call(state: State) -> None:
        state["list"] = [*state.get("list", []), "0123456789"]

    for _ in range(6):
        store.use("finish", Rec(b"a", "count"), call)  # type: ignore[arg-type]
    with pytest.raises(BadRecord, match="state_max_bytes"):
        store.use("finish", Rec(b"a", "count"), call)  # type: ignore[arg-type]
    assert 0 < store.nbytes < 500


def test_only_parts_that_changed_are_written() -> None:
    store = Store()
    store.open(HERE, 1)
    keyless: Any = Rec(None, "count")

    def fill(state: State) -> None:
        state.part("a")["n"] = state.part("b")["n"] = 1

    def look(state: State) -> tuple[str, int, Any, Any]:
        state.part("b")["n"] += 1
        return state.topic, state.number, dict(state.part("a")), dict(state.part("c"))

    store.use("finish", keyless, fill)
    assert {change.key: change.value for change in store.take()} == {b"f/a": b'{"n":1}', b"f/b": b'{"n":1}'}
    assert store.use("finish", keyless, look) == (*HERE, {"n": 1}, {})
    assert [(change.key, change.value) for change in store.take()] == [(b"f/b", b'{"n":2}')]
    assert store.use("recall", keyless, lambda state: dict(state.part("a"))) == {}


def test_a_record_without_key_has_no_state_of_its_own() -> None:
    store = Store()
    store.open(HERE, 1)
    keyless: Any = Rec(None, "count")

    def both(state: State) -> None:
        state.partition["n"] = 1
        state["n"] = 1

    with pytest.raises(BadRecord, match="no key"):
        store.use("finish", keyless, both)
    assert store.take() == []
    store.use("finish", keyless, lambda state: state.partition.update(n=1))
    assert [change.key for change in store.take()] == [b"f"]


def test_a_part_that_lies_still_for_long_is_forgotten() -> None:
    store = Store(ttl_ms=TTL_MS)
    store.open(HERE, 1)

    def at(time: int, name: str) -> Any:
        record: Any = Rec(None, "count", time)
        return store.use("finish", record, lambda state: state.part(name).setdefault("since", time))

    assert [at(0, "a"), at(30, "b"), at(60, "a")] == [0, 30, 60]
    store.take()
    assert at(81, "c") == 81
    assert [change.key for change in store.take() if change.value is None] == [b"f/b"]
