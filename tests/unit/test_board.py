"""What the demo shows, as text: the header is always there, unknown numbers are no zeros, everything fits."""

from __future__ import annotations

import pytest
from rich.console import Console, RenderableType

from consumer.local.board import Pulse, board, readable, summary
from consumer.local.ledger import Ledger, Sent


def lines(shown: RenderableType) -> list[str]:
    console = Console(width=80)
    with console.capture() as capture:
        console.print(shown)
    return capture.get().splitlines()


def books(events: int) -> Ledger:
    """Every third is spam, and all are called good mail."""
    ledger = Ledger()
    for number in range(events):
        ledger.send(f"e{number}", Sent(1.0, number % 3 == 0, f"subject {number}"))
        ledger.result(f"e{number}", 0.903, 0.927, False, "spam 7", 1.5)
    return ledger


def picture(ledger: Ledger, pulse: Pulse = Pulse(), height: int = 15) -> list[str]:  # noqa: B008 - it is frozen
    return lines(board(ledger, pulse, goal=100, where="here", under_way=64, height=height))


def test_before_the_first_result_nothing_pretends_to_be_measured() -> None:
    text = "\n".join(picture(Ledger()))
    assert "waiting for the first result" in text
    assert "– in/s" in text
    assert "– mails/batch" in text
    assert "nan" not in text


def test_the_header_says_what_counts_as_spam_and_a_wrong_verdict_is_marked() -> None:
    shown = picture(books(3))
    (header,) = [line for line in shown if "subject  " in line]
    assert "spam ≥ 92.7%" in header
    assert "truth" in header
    marks = {line.split()[2]: "✗" in line for line in shown if "90.3%" in line}
    assert marks == {"0": True, "1": False, "2": False}
    assert any("64 mails kept on their way" in line and "spam 7" in line for line in shown)


@pytest.mark.parametrize("events", [0, 1, 7, 30])
def test_the_board_never_jumps(events: int) -> None:
    assert len(picture(books(events))) == 15


def test_it_ends_with_the_summary_on_one_screen() -> None:
    below = lines(summary(books(30), under_way=64))
    assert len(picture(books(30), height=24 - len(below) - 1)) + len(below) + 1 <= 24


def test_lag_and_count_are_those_of_now() -> None:
    assert any("0 lag" in line and "30 done" in line for line in picture(books(30), Pulse(1.0, 1.0)))


@pytest.mark.parametrize(
    ("subject", "shown"),
    [
        ("[ILUG] a\tsubject", "[ILUG] a subject"),
        ("Houses rise \ufffd1,100 a week", "Houses rise 1,100 a week"),
        ("你準備好了嗎?", "你準備好了嗎?"),
        ("", "(no subject)"),
        ("[\ufffd\ufffd\ufffd\ufffd] \ufffd\ufffd Best 5", None),
    ],
)
def test_subjects_are_cleaned_and_unreadable_ones_left_out(subject: str, shown: str | None) -> None:
    assert readable(subject) == shown
