"""The books of the demo: every kind of wrong outcome is noticed, and nothing is called missing that is none."""

from __future__ import annotations

import math

import pytest

from consumer.local.ledger import Due, Ledger, Line, Sent, quantile

SPAM = Line("spam 90 %", right=True)


def ledger_with(*dues: Due) -> Ledger:
    ledger = Ledger()
    for number, due in enumerate(dues):
        ledger.send(f"e{number}", Sent(float(number), due, f"subject {number}", truth=number == 0))
        ledger.placed(f"e{number}", ("clicks", 0), 10 + number)
    return ledger


def test_all_well() -> None:
    ledger = ledger_with(Due.RESULT, Due.RESULT, Due.DEAD_LETTER)
    ledger.result("e0", SPAM, 2.0)
    ledger.result("e1", Line("spam 90 %", right=False), 4.0)
    ledger.dead("e2", "truncated", 5.0)
    assert ledger.clean
    assert (ledger.total, ledger.settled, ledger.open, ledger.broken) == (3, 3, 0, 1)
    assert (ledger.results, ledger.dead_letters, ledger.silent) == (2, 1, 0)
    assert dict(ledger.judged) == {(True, True): 1, (False, False): 1}
    assert dict(ledger.reasons) == {"truncated": 1}
    assert list(ledger.latencies_s) == [2.0, 3.0, 3.0]
    assert [line.right for line in ledger.latest] == [False, True]


def test_the_rate_counts_from_the_first_event_even_where_all_outcomes_come_at_once() -> None:
    ledger = ledger_with(Due.RESULT, Due.RESULT)
    assert math.isnan(ledger.rate)
    ledger.result("e0", SPAM, 4.0)
    ledger.result("e1", None, 4.0)
    assert ledger.rate == pytest.approx(2 / 4)


def test_missing() -> None:
    ledger = ledger_with(Due.RESULT, Due.RESULT)
    ledger.result("e0", SPAM, 2.0)
    assert ledger.open == 1
    assert not ledger.clean


def test_committed_offsets_settle_what_has_no_result_and_nothing_else() -> None:
    ledger = ledger_with(Due.RESULT, Due.NOTHING, Due.NOTHING, Due.MAYBE)
    ledger.reached(("clicks", 0), 12)
    assert (ledger.silent, ledger.open) == (1, 3)
    ledger.reached(("clicks", 1), 99)
    assert ledger.silent == 1, "another partition"
    ledger.reached(("clicks", 0), 14)
    assert (ledger.silent, ledger.open) == (3, 1)
    ledger.result("e0", SPAM, 9.0)
    assert ledger.clean


def test_a_committed_event_without_its_result_is_missing() -> None:
    ledger = ledger_with(Due.RESULT)
    ledger.reached(("clicks", 0), 99)
    assert ledger.open == 1


def test_one_that_may_have_a_result_is_settled_once_whichever_is_seen_first() -> None:
    for seen_first in (True, False):
        ledger = ledger_with(Due.MAYBE)
        if seen_first:
            ledger.result("e0", SPAM, 1.0)
        ledger.reached(("clicks", 0), 99)
        if not seen_first:
            ledger.result("e0", SPAM, 1.0)
        assert (ledger.settled, ledger.results, ledger.silent, ledger.open) == (1, 1, 0, 0)
        assert ledger.clean


def test_twice() -> None:
    ledger = ledger_with(Due.RESULT)
    ledger.result("e0", SPAM, 2.0)
    ledger.dead("e0", "truncated", 3.0)
    assert ledger.duplicates == 1
    assert not ledger.clean


def test_the_wrong_outcome() -> None:
    ledger = ledger_with(Due.RESULT, Due.DEAD_LETTER, Due.NOTHING)
    ledger.dead("e0", "truncated", 1.0)
    ledger.result("e1", SPAM, 1.0)
    ledger.result("e2", SPAM, 1.0)
    ledger.reached(("clicks", 0), 99)
    assert (ledger.wrongly_dead, ledger.wrongly_alive) == (1, 2)
    assert not ledger.judged
    assert not ledger.clean


def test_unknown_events() -> None:
    ledger = ledger_with()
    ledger.result("stranger", SPAM, 1.0)
    assert ledger.strangers == 1
    assert not ledger.clean


def test_a_long_demo_forgets_what_is_settled_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("consumer.local.ledger._REMEMBERED", 10)
    ledger = ledger_with(Due.RESULT)
    for number in range(1, 100):
        due = Due.NOTHING if number % 2 else Due.RESULT
        ledger.send(f"e{number}", Sent(0.0, due))
        ledger.placed(f"e{number}", ("clicks", 0), number)
        if due is Due.RESULT:
            ledger.result(f"e{number}", SPAM, 1.0)
        ledger.reached(("clicks", 0), number + 1)
    assert len(ledger.sent) <= 11
    assert (ledger.total, ledger.settled, ledger.open) == (100, 99, 1)
    ledger.result("e0", SPAM, 1.0)
    assert ledger.clean


def test_quantile() -> None:
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert quantile([1.0], 0.99) == 1.0
    assert quantile([], 0.5) != quantile([], 0.5)
