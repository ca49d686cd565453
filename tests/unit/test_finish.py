"""Outputs become results with their provenance, errors become dead letters, and everything stays aligned."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import pytest

from consumer.codec import Decoder, Encoder, load_schema
from consumer.deadletter import PREFIX, Letters
from consumer.errors import BadRecord, Fatal, Retry
from consumer.finish import Finisher
from consumer.records import Chunk, Event, Finished, Headers
from consumer.task import Task
from consumer.telemetry import ChunkTrace, Clock
from tests.unit.fakes import FakeRecord, chunk_of

SCHEMA = load_schema("click_score")
DECODER = Decoder(SCHEMA)


class Score(Task):
    name = "score"
    version = "2"


class Choosing(Score):
    """`finish` is called with each output; what it does depends on it."""

    def __init__(self) -> None:
        self.finished: list[tuple[Any, Any]] = []

    def finish(self, event: Event, output: Any, state: Mapping[str, Any]) -> Any:
        self.finished.append((event["id"], output))
        if isinstance(output, Exception):
            raise output
        return output


class Raising(Choosing):
    """Raises what a callable output makes."""

    def finish(self, event: Event, output: Any, state: Mapping[str, Any]) -> Any:
        return super().finish(event, output() if callable(output) else output, state)


def finish(
    outputs: Sequence[Any], task: Task | None = None, *, headers: Sequence[Headers | None] | None = None
) -> tuple[Finished, Mapping[int, BadRecord], Chunk]:
    """Finish a chunk whose event i has the id `e<i>` and the offset 100 + i; rejected ones have no event."""
    chunk = chunk_of([FakeRecord(100 + i, its_key=f"k{i}".encode()) for i in range(len(outputs))], number=9)
    events: list[Event | BadRecord] = [
        output if isinstance(output, BadRecord) and output.stage == "decode" else {"id": f"e{i}"}
        for i, output in enumerate(outputs)
    ]
    trace = None if headers is None else ChunkTrace(chunk, headers, {}, Clock())
    task = task or Score()
    finisher = Finisher(task, Encoder(SCHEMA), "scores", Letters("clicks.dead", task, "group"))
    finished, rejected, _ = finisher.finish(chunk, events, outputs, trace)
    return finished, rejected, chunk


def results_of(finished: Finished) -> list[Event]:
    events = DECODER.decode_many(finished.values)
    assert not [event for event in events if isinstance(event, BadRecord)]
    return [event for event in events if not isinstance(event, BadRecord)]


def offsets_of(finished: Finished) -> list[int]:
    return [record.offset() for record in finished.sources]


def reasons_of(finished: Finished) -> list[tuple[int, str]]:
    """Offset and reason of each dead letter, in order."""
    return [
        (letter.source.offset(), (dict(letter.headers)[PREFIX + "reason"] or b"").decode())
        for letter in finished.dead
    ]


def test_every_result_says_where_it_comes_from_who_made_it_and_when() -> None:
    before_ms = time.time_ns() // 1_000_000
    finished, rejected, chunk = finish([{"score": 0.25}, {"score": 0.5}])
    first, second = results_of(finished)
    assert before_ms <= first.pop("produced_at") <= time.time_ns() // 1_000_000
    assert first == {
        "event_id": "e0",
        "source_topic": "emails",
        "source_partition": 3,
        "source_offset": 100,
        "score": 0.25,
        "model": "score",
        "model_version": "2",
    }
    assert (second["event_id"], second["source_offset"], second["score"]) == ("e1", 101, 0.5)
    assert (finished.number, finished.topic) == (9, "scores")
    assert finished.sources == chunk.records
    assert finished.next_offsets is chunk.next_offsets and finished.epochs is chunk.epochs
    assert finished.dead == [] and rejected == {}
    assert finished.headers is None


def test_the_version_that_load_set_is_the_one_in_the_results() -> None:
    task = Score()
    task.version = "2026-01"
    finished, _, _ = finish([{"score": 0.1}], task)
    assert results_of(finished)[0]["model_version"] == "2026-01"


def test_rejected_records_become_dead_letters_in_poll_order_and_cost_the_others_nothing() -> None:
    finished, rejected, _ = finish(
        [
            {"score": 0.0},
            BadRecord("run_failed", "ValueError: no"),
            {"score": 2.0},
            BadRecord("truncated", "byte 3", stage="decode"),
            {"wrong": 1},
        ]
    )
    assert offsets_of(finished) == [100, 102]
    assert [result["event_id"] for result in results_of(finished)] == ["e0", "e2"]
    assert reasons_of(finished) == [(101, "run_failed"), (103, "truncated"), (104, "result_does_not_fit")]
    assert {i: error.reason for i, error in rejected.items()} == {
        1: "run_failed",
        3: "truncated",
        4: "result_does_not_fit",
    }
    assert list(rejected) == [1, 3, 4]
    assert [error.stage for error in rejected.values()] == ["run", "decode", "encode"]
    assert finished.next_offsets == {("emails", 3): 105}
    assert [letter.key for letter in finished.dead] == [b"k1", b"k3", b"k4"]


def test_a_chunk_of_nothing_but_rejected_records_has_no_results() -> None:
    finished, rejected, _ = finish([BadRecord("truncated", stage="decode")] * 3)
    assert (finished.values, finished.sources, len(finished.dead), len(rejected)) == ([], [], 3, 3)


def test_a_task_may_have_its_own_kind_of_bad_record() -> None:
    class NoText(BadRecord):
        pass

    finished, _, _ = finish([NoText("no_text"), {"score": 0.5}])
    assert reasons_of(finished) == [(100, "no_text")]


@pytest.mark.parametrize("neighbour", [{"score": 0.5}, BadRecord("run_failed")])
def test_none_is_no_result_whatever_the_neighbours_are(neighbour: Any) -> None:
    finished, rejected, _ = finish([None, neighbour, {"score": 0.75}])
    assert 100 not in offsets_of(finished)
    assert 0 not in rejected
    assert results_of(finished)[-1]["score"] == 0.75
    assert len(finished.values) + len(finished.dead) == 2


@pytest.mark.parametrize("neighbour", [{"score": 0.5}, BadRecord("run_failed")])
@pytest.mark.parametrize("odd", [0.5, "text", [("score", 0.5)], object()])
def test_an_output_that_is_no_dict_is_a_dead_letter_of_its_own(odd: Any, neighbour: Any) -> None:
    finished, rejected, _ = finish([neighbour, odd, {"score": 0.75}])
    assert offsets_of(finished)[-1] == 102
    bad = rejected[1]
    assert (bad.reason, bad.stage) == ("result_does_not_fit", "finish")
    assert type(odd).__name__ in bad.detail


def test_any_mapping_will_do_as_a_result() -> None:
    for neighbour in ({"score": 0.5}, None):
        finished, _, _ = finish([MappingProxyType({"score": 0.25}), neighbour])
        assert results_of(finished)[0]["score"] == 0.25


def test_finish_of_the_task_is_asked_once_for_each_event_in_poll_order() -> None:
    task = Choosing()
    outputs = [{"score": 0.1}, "no dict", BadRecord("run_failed"), None, {"wrong": 1}, {"score": 0.2}]
    finished, rejected, _ = finish(outputs, task)
    assert task.finished == [(f"e{i}", outputs[i]) for i in (0, 1, 3, 4, 5)]
    assert offsets_of(finished) == [100, 105]
    assert {i: error.stage for i, error in rejected.items()} == {1: "finish", 2: "run", 4: "encode"}
    assert list(rejected) == [1, 2, 4]


def test_an_event_that_fails_in_finish_fails_alone() -> None:
    def missing() -> Any:
        raise KeyError("score")

    def picky() -> Any:
        raise BadRecord("too_old")

    finished, rejected, _ = finish([{"score": 0.1}, missing, {"score": 0.2}, picky], Raising())
    assert offsets_of(finished) == [100, 102]
    assert reasons_of(finished) == [(101, "finish_failed"), (103, "too_old")]
    assert re.fullmatch(r"KeyError: 'score' \(at .*test_finish\.py:\d+\)", rejected[1].detail)
    assert {error.stage for error in rejected.values()} == {"finish"}


@pytest.mark.parametrize("error", [Retry("store away"), Fatal("over")])
def test_retry_and_fatal_in_finish_are_no_fault_of_the_event(error: Exception) -> None:
    with pytest.raises(type(error)):
        finish([{"score": 0.1}, error], Choosing())


def test_results_that_cannot_be_encoded_become_dead_letters() -> None:
    half_a_pair = {"score": 0.5, "event_id": "\ud800"}
    finished, rejected, _ = finish([{"score": "high"}, {"score": 0.5}, {}, half_a_pair, {"score": None}])
    assert offsets_of(finished) == [101]
    assert list(rejected) == [0, 2, 3, 4]
    assert {(error.reason, error.stage) for error in rejected.values()} == {("result_does_not_fit", "encode")}


def test_headers_belong_to_their_results_and_dead_letters_name_their_trace() -> None:
    headers: list[Headers | None] = [
        [("traceparent", f"00-{i:032x}-{i:016x}-01".encode())] if i != 2 else None for i in range(1, 6)
    ]
    outputs = [{"score": 0.1}, {"score": 0.2}, BadRecord("run_failed"), None, {"wrong": 1}]
    finished, _, _ = finish(outputs, headers=headers)
    assert offsets_of(finished) == [100, 101]
    assert finished.headers == [headers[0], None]
    traces = [dict(letter.headers).get(PREFIX + "traceparent") for letter in finished.dead]
    assert traces == [f"00-{i:032x}-{i:016x}-01".encode() for i in (3, 5)]


def test_a_letter_of_a_record_without_a_trace_names_none() -> None:
    finished, _, _ = finish([BadRecord("run_failed")], headers=[None])
    assert PREFIX + "traceparent" not in dict(finished.dead[0].headers)


def test_fields_of_the_task_win_over_ours() -> None:
    finished, _, _ = finish([{"score": 0.5, "model": "ensemble"}])
    assert results_of(finished)[0]["model"] == "ensemble"
