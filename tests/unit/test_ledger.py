"""The books of the demo: every kind of wrong outcome is noticed."""

from __future__ import annotations

import math

import pytest

from consumer.local.ledger import Ledger, Sent, quantile


def ledger_with(*labels: bool | None) -> Ledger:
    ledger = Ledger()
    for number, label in enumerate(labels):
        ledger.send(f"e{number}", Sent(float(number), label, f"subject {number}"))
    return ledger


def test_all_well() -> None:
    ledger = ledger_with(True, False, None)
    ledger.result("e0", 0.9, 0.8, True, "spam 1", 2.0)
    ledger.result("e1", 0.9, 0.8, True, "spam 1", 4.0)
    ledger.dead("e2", "truncated", 5.0)
    assert ledger.clean
    assert (ledger.total, ledger.settled, ledger.open, ledger.broken) == (3, 3, 0, 1)
    assert (ledger.judged, ledger.right, ledger.good_mails, ledger.false_alarms) == (2, 1, 1, 1)
    assert dict(ledger.reasons) == {"truncated": 1}
    assert list(ledger.latencies_s) == [2.0, 3.0, 3.0]
    assert [(verdict.subject, verdict.right) for verdict in ledger.latest] == [
        ("subject 1", False),
        ("subject 0", True),
    ]


def test_the_rate_counts_from_the_first_event_even_where_all_outcomes_come_at_once() -> None:
    ledger = ledger_with(True, False)
    assert math.isnan(ledger.rate)
    ledger.result("e0", 0.9, 0.8, True, "spam 1", 4.0)
    ledger.result("e1", 0.1, 0.8, False, "spam 1", 4.0)
    assert ledger.rate == pytest.approx(2 / 4)


def test_missing() -> None:
    ledger = ledger_with(True, False)
    ledger.result("e0", 0.9, 0.8, True, "spam 1", 2.0)
    assert ledger.open == 1
    assert not ledger.clean


def test_twice() -> None:
    ledger = ledger_with(True)
    ledger.result("e0", 0.9, 0.8, True, "spam 1", 2.0)
    ledger.dead("e0", "truncated", 3.0)
    assert ledger.duplicates == 1
    assert not ledger.clean


def test_a_good_mail_that_died_and_a_broken_record_that_lived() -> None:
    ledger = ledger_with(False, None)
    ledger.dead("e0", "truncated", 1.0)
    ledger.result("e1", 0.5, 0.8, False, "spam 1", 1.0)
    assert (ledger.wrongly_dead, ledger.wrongly_alive, ledger.judged) == (1, 1, 0)
    assert not ledger.clean


def test_unknown_events() -> None:
    ledger = ledger_with()
    ledger.result("stranger", 0.5, 0.8, False, "spam 1", 1.0)
    assert ledger.strangers == 1
    assert not ledger.clean


def test_a_long_demo_forgets_what_is_settled_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("consumer.local.ledger._REMEMBERED", 10)
    ledger = ledger_with(True)
    for number in range(1, 100):
        ledger.send(f"e{number}", Sent(0.0, True, ""))
        ledger.result(f"e{number}", 0.9, 0.8, True, "spam 1", 1.0)
    assert len(ledger.sent) <= 11
    assert (ledger.total, ledger.settled, ledger.open) == (100, 99, 1)
    ledger.result("e0", 0.9, 0.8, True, "spam 1", 1.0)
    assert ledger.clean


def test_quantile() -> None:
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert quantile([1.0], 0.99) == 1.0
    assert quantile([], 0.5) != quantile([], 0.5)
