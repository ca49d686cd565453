"""Dead letters keep the record as it came and say everything about its end; a cap stops a bad deployment."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.deadletter import PREFIX, Cap, Letters
from consumer.errors import BadRecord, Fatal
from consumer.records import Headers, Outgoing
from consumer.task import Task
from tests.unit.fakes import FakeRecord


class Spam(Task):
    name = "spam"
    version = "3"


LETTERS = Letters("emails.dead", Spam(), "spam-group")
BAD = BadRecord("truncated", "byte 7")
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def ours(letter: Outgoing) -> dict[str, str]:
    return {
        name.removeprefix(PREFIX): (value or b"").decode()
        for name, value in letter.headers
        if name.startswith(PREFIX)
    }


def test_the_record_is_untouched() -> None:
    headers = [("traceparent", TRACEPARENT.encode()), ("twice", b"1"), ("twice", b"2"), ("none", None)]
    record = FakeRecord(5, its_key=b"\x00k", its_value=b"\xff\x00garbage", its_headers=headers)
    letter = LETTERS.write(record, BadRecord("truncated"))
    assert (letter.topic, letter.key, letter.value) == ("emails.dead", b"\x00k", b"\xff\x00garbage")
    assert letter.headers[:4] == headers
    assert all(name.startswith(PREFIX) for name, _ in letter.headers[4:])
    assert letter.timestamp_ms == 1_700_000_000_123
    assert letter.source is record
    assert len(headers) == 4


def test_the_headers_say_why_where_and_what() -> None:
    before_ms = time.time_ns() // 1_000_000
    error = BadRecord("truncated", "byte 7 of 9", stage="decode")
    found = ours(LETTERS.write(FakeRecord(42), error, TRACEPARENT))
    assert before_ms <= int(found.pop("failed_at_ms")) <= time.time_ns() // 1_000_000
    assert found == {
        "reason": "truncated",
        "stage": "decode",
        "error": "byte 7 of 9",
        "topic": "emails",
        "partition": "3",
        "offset": "42",
        "timestamp_ms": "1700000000123",
        "task": "spam",
        "model_version": "3",
        "group": "spam-group",
        "traceparent": TRACEPARENT,
    }


def test_a_tombstone_without_key_headers_and_time_has_a_letter_too() -> None:
    record = FakeRecord(0, its_key=None, its_value=None, its_timestamp=(0, -1))
    letter = LETTERS.write(record, BadRecord("null_value"))
    assert (letter.key, letter.value) == (None, None)
    assert letter.timestamp_ms == 0
    found = ours(letter)
    assert (found["timestamp_ms"], found["stage"], found["error"]) == ("-1", "unknown", "")
    assert "traceparent" not in found


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (BadRecord("run_failed", "x" * 5_000), "x" * 1_000),
        (BadRecord("run_failed", "half a pair: \ud800"), "half a pair: \\ud800"),
        (BadRecord("run_failed", ValueError("an object")), "an object"),  # type: ignore[arg-type]
    ],
)
def test_whatever_a_task_puts_into_its_errors_the_letter_can_be_written(
    error: BadRecord, expected: str
) -> None:
    assert ours(LETTERS.write(FakeRecord(), error))["error"] == expected


def test_the_letter_of_a_refused_result_says_what_to_do() -> None:
    found = ours(LETTERS.refused(FakeRecord(), 2_000_000, "spam_verdicts", "MSG_SIZE_TOO_LARGE"))
    assert (found["reason"], found["stage"]) == ("result_too_large", "publish")
    for part in ("2000000 bytes", "'spam_verdicts'", "max.message.bytes"):
        assert part in found["error"]
    found = ours(LETTERS.refused(FakeRecord(), 9, "spam_verdicts", "INVALID_RECORD"))
    assert (found["reason"], found["stage"]) == ("result_refused", "publish")
    assert "INVALID_RECORD" in found["error"]


def test_a_letter_that_is_too_large_loses_its_largest_part_first_and_says_so() -> None:
    foreign: Headers = [("big", b"h" * 50), ("small", b"h")]
    record = FakeRecord(5, its_key=b"k" * 20, its_value=b"v" * 99, its_headers=foreign)
    letter: Outgoing | None = LETTERS.write(record, BadRecord("too_large"))
    assert letter is not None
    reason = ours(letter)["reason"]
    left = []
    while (lighter := Letters.lighten(letter, "MSG_SIZE_TOO_LARGE")) is not None:
        letter = lighter
        left.append((letter.key is not None, letter.value is not None, "big" in dict(letter.headers)))
        assert letter.source is record
        assert ours(letter)["reason"] == reason
    assert left == [(True, False, True), (True, False, False), (False, False, False)]
    notes = ours(letter)
    assert notes["value"].startswith("99 bytes left out")
    assert notes["headers"].startswith("59 bytes left out")
    assert notes["key"].startswith("20 bytes left out")


def test_a_letter_of_a_moment_that_the_topic_refuses_goes_with_that_of_now() -> None:
    letter = LETTERS.write(FakeRecord(), BAD)
    lighter = Letters.lighten(letter, "INVALID_TIMESTAMP")
    assert lighter is not None
    assert (lighter.timestamp_ms, lighter.value, lighter.headers) == (0, letter.value, letter.headers)
    assert ours(lighter)["timestamp_ms"] == "1700000000123"
    assert Letters.lighten(lighter, "INVALID_TIMESTAMP") is None


def test_a_letter_refused_for_another_reason_stays_as_it_is() -> None:
    assert Letters.lighten(LETTERS.write(FakeRecord(), BAD), "INVALID_RECORD") is None


def test_headers_that_the_client_cannot_read_do_not_stop_the_letter() -> None:
    class Unreadable(FakeRecord):
        def headers(self) -> Headers | None:
            raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")

    found = ours(LETTERS.write(Unreadable(), BAD))
    assert found["headers"].startswith("left out: unreadable (UnicodeDecodeError)")
    assert found["reason"] == "truncated"


def test_the_share_is_judged_once_the_window_is_full() -> None:
    cap = Cap(max_share=0.5, window=100, max_run=0)
    cap.observe(range(99), 99, BAD)
    with pytest.raises(Fatal, match=r"99 of the last 100 records.*truncated: byte 7.*dead_letter_max_share"):
        cap.observe((), 1, None)


def test_a_share_at_the_limit_is_allowed() -> None:
    cap = Cap(max_share=0.5, window=100, max_run=0)
    for _ in range(10):
        cap.observe(range(0, 20, 2), 20, BAD)


def test_old_chunks_leave_the_window() -> None:
    cap = Cap(max_share=0.5, window=100, max_run=0)
    cap.observe(range(90), 99, BAD)
    with pytest.raises(Fatal):
        cap.observe((), 50, None)
    cap = Cap(max_share=0.5, window=100, max_run=0)
    cap.observe(range(49), 50, BAD)
    cap.observe((), 50, None)
    cap.observe((), 50, None)
    cap.observe(range(49), 50, BAD)
    with pytest.raises(Fatal, match="98 of the last 100"):
        cap.observe(range(49), 50, BAD)


def test_one_chunk_larger_than_the_window_is_judged_as_a_whole() -> None:
    cap = Cap(max_share=0.5, window=100, max_run=0)
    cap.observe(range(499), 1_000, BAD)
    with pytest.raises(Fatal, match="501 of the last 1000"):
        cap.observe(range(501), 1_000, BAD)


def test_a_run_goes_on_over_the_edge_of_chunks() -> None:
    cap = Cap(max_share=1, window=1_000, max_run=10)
    cap.observe(range(15, 20), 20, BAD)
    cap.observe((), 0, None)
    cap.observe(range(3), 3, BAD)
    cap.observe(range(2), 20, BAD)
    with pytest.raises(Fatal, match=r"11 records in a row.*truncated: byte 7.*dead_letter_max_run"):
        cap.observe(range(5, 16), 20, BAD)


def test_a_good_record_ends_a_run() -> None:
    cap = Cap(max_share=1, window=1_000, max_run=10)
    for dead in (range(10), range(10, 20), ()):
        cap.observe(dead, 20, BAD if dead else None)
    cap.observe(range(1, 11), 20, BAD)


def test_both_can_be_switched_off() -> None:
    cap = Cap(max_share=1, window=10, max_run=0)
    for _ in range(5):
        cap.observe(range(100), 100, BAD)


def test_a_window_of_nothing_judges_each_chunk() -> None:
    cap = Cap(max_share=0.5, window=0, max_run=0)
    cap.observe((), 10, None)
    with pytest.raises(Fatal):
        cap.observe(range(6), 10, BAD)


@given(chunks=st.lists(st.lists(st.booleans(), max_size=8), max_size=12), max_run=st.integers(1, 8))
def test_runs_are_found_wherever_the_chunks_are_cut(chunks: list[list[bool]], max_run: int) -> None:
    cap = Cap(max_share=1, window=1_000, max_run=max_run)
    run = 0
    for chunk in chunks:
        over = False
        for bad in chunk:
            run = run + 1 if bad else 0
            over = over or run > max_run
        dead = [place for place, bad in enumerate(chunk) if bad]
        if over:
            with pytest.raises(Fatal):
                cap.observe(dead, len(chunk), BAD)
            return
        cap.observe(dead, len(chunk), BAD if dead else None)
