"""What the demo shows, as text: unknown numbers are no zeros, nothing jumps, everything fits."""

from __future__ import annotations

import pytest
from rich.console import Console, RenderableType

from consumer.local.board import Row, board, summary
from consumer.local.feeds import PARTS
from consumer.local.ledger import Due, Ledger, Line, Sent
from consumer.local.meter import Meter


def lines(shown: RenderableType, width: int = 100) -> list[str]:
    console = Console(width=width)
    with console.capture() as capture:
        console.print(shown)
    return capture.get().splitlines()


def books(events: int) -> Ledger:
    """Every third is spam, and all are called good mail."""
    ledger = Ledger()
    for number in range(events):
        spam = number % 3 == 0
        ledger.send(f"e{number}", Sent(1.0, Due.RESULT, truth=spam))
        ledger.result(f"e{number}", Line(f"ham 90 % subject {number}", right=not spam), 1.5)
    return ledger


def rows(events: int = 0, rate: float | None = None) -> list[Row]:
    return [Row(name, part, books(events), rate) for name, part in PARTS.items()]


def picture(events: int, rate: float | None = None, height: int = 24) -> list[str]:
    return lines(board(rows(events, rate), goal=100, where="here", height=height))


def test_before_the_first_result_nothing_pretends_to_be_measured() -> None:
    shown = picture(0)
    assert sum("waiting for the first result" in line for line in shown) == len(PARTS)
    assert sum(line.count("–") for line in shown if line.startswith("│")) == 3 * len(PARTS)
    assert not any("nan" in line for line in shown)


@pytest.mark.parametrize("height", [18, 24, 50])
def test_the_board_never_jumps_and_fits(height: int) -> None:
    sizes = {len(picture(events, height=height)) for events in (0, 1, 7, 30)}
    assert len(sizes) == 1
    assert sizes.pop() <= height


def test_numbers_are_those_of_now() -> None:
    (line,) = [line for line in picture(30, 2.5) if line.startswith("│ image ") and "ms" in line]
    assert line.split()[2:9] == ["30", "30", "0", "0", "2.5", "0", "500"]


def test_a_telling_result_stays_in_sight() -> None:
    ledger = books(0)
    for number, text in enumerate(["offer", *["none"] * 9]):
        ledger.send(f"e{number}", Sent(1.0))
        ledger.result(f"e{number}", Line(text, telling=text == "offer"), 2.0)
    (name,) = [name for name in PARTS if name == "discount"]
    shown = lines(board([Row(name, PARTS[name], ledger)], goal=None, where="here", height=11))
    assert sum("offer" in line for line in shown) == 1
    assert sum("none" in line for line in shown) >= 1


def test_the_summary_says_how_good_and_what_went_wrong() -> None:
    ledger = books(30)
    ledger.send("broken", Sent(1.0, Due.DEAD_LETTER))
    ledger.result("broken", None, 2.0)
    ledger.result("e1", None, 2.0)
    shown = "\n".join(lines(summary([Row("spam", PARTS["spam"], ledger)])))
    assert "accuracy 66.7 %" in shown
    assert "good mail called spam: 0.0 %, 0 of 20" in shown
    assert "1 results where none should be" in shown
    (totals,) = [line.split() for line in shown.splitlines() if line.startswith("spam") and "ms" in line]
    assert totals[:7] == ["spam", "31", "32", "0", "0", "1", "0"]


def test_all_headings_can_be_read_on_a_small_terminal() -> None:
    for shown in (summary(rows(30)), board(rows(30), goal=100, where="here", height=24)):
        text = lines(shown, 80)
        assert all(len(line) <= 80 for line in text)
        (heading,) = [line for line in text if "events" in line and "results" in line]
        assert "…" not in heading
    assert len(lines(summary(rows(30)), 80)) <= 20


def test_the_rate_is_that_of_the_last_seconds() -> None:
    ledger = Ledger()
    meter = Meter(ledger)
    assert meter.read(0.0) is None
    for second in range(1, 20):
        for number in range(10 if second > 10 else 100):
            ledger.send(f"{second}-{number}", Sent(float(second)))
            ledger.result(f"{second}-{number}", None, float(second))
        rate = meter.read(float(second))
    assert rate == pytest.approx(10.0)
