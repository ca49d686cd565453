"""Canonical text: the same letter in two forms comes out alike, and odd input costs no time."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.text import KEEP_CHARS, body_text, held_out, subject_text


def test_raw_and_tokenised_forms_of_a_letter_are_one() -> None:
    raw = "Hello Ann,\n\nWe can't meet at 10:30; see http://www.example.org/plan?id=7 or write to bob.b@example.org!"
    tokenised = (
        "hello ann , we can ' t meet at 10 : 30 ; see http : / / www . example . org / plan ? id = 7 "
        "or write to bob . b @ example . org !"
    )
    assert body_text(raw) == body_text(tokenised)


def test_html_gives_what_a_reader_sees() -> None:
    html = (
        "<html><head><title>no</title><style>p {color: red}</style></head><body><p>Buy n<b>o</b>w"
        "<!-- hidden --></p><span style='display:none'>poem</span><br>cheap&nbsp;&amp; good</body></html>"
    )
    assert body_text(html) == "buy now cheap & good"
    assert body_text("", html) == body_text(html)


def test_the_text_part_counts_once_when_it_says_what_the_html_says() -> None:
    assert body_text("buy it now", "<p>Buy it now</p>") == "buy it now"
    both = body_text("minutes of the board about budgets", "<p>Cheap watches</p>")
    assert both.startswith("cheap watches") and "minutes" in both


@pytest.mark.parametrize(
    "subject", ["Re: [ILUG] Minutes", "FWD: minutes", "  minutes ", "RE : [list] re: Minutes"]
)
def test_subject_loses_reply_marks_and_list_tags(subject: str) -> None:
    assert subject_text(subject) == "minutes"


def test_furniture_of_lists_is_dropped() -> None:
    letter = (
        "> fine by me\n\n" + "_" * 40 + "\nUsers mailing list\nTo unsubscribe: http://lists.example.org\n"
    )
    assert body_text(letter) == "fine by me"


def test_numbers_keep_only_their_shape() -> None:
    assert body_text("in 2002 it cost $1,200.50") == body_text("in 2007 it cost $9,999.99")


def test_a_thread_stays_on_one_side_of_the_split() -> None:
    subjects = [f"plan number {word}" for word in "one two three four five six seven eight nine ten".split()]
    sides = [held_out(subject, "") for subject in subjects]
    assert [held_out(f"Re: [list] {s.upper()}", "other words") for s in subjects] == sides
    assert set(sides) == {True, False}
    assert held_out("", "hello  there, Ann") == held_out("", "Hello there , ann")


@given(st.text(max_size=300), st.text(max_size=2_000), st.none() | st.text(max_size=2_000))
def test_any_text_is_accepted(subject: str, body: str, html: str | None) -> None:
    for canonical in (subject_text(subject), body_text(body, html)):
        assert canonical == canonical.strip()
        assert "  " not in canonical
    held_out(subject, body)


@pytest.mark.parametrize(
    "piece",
    [
        "<div>",
        "a.",
        "> ",
        "_" * 30 + "\n",
        "from:",
        "=3D",
        "http://",
        "&lt;",
        "a@",
        "0.",
        "<!--",
        "\n",
        "[",
        "www.",
    ],
)
def test_hostile_repetition_takes_no_time(piece: str) -> None:
    letter = piece * (1_000_000 // len(piece))
    started = time.process_time()
    assert len(body_text(letter, letter)) <= 4 * KEEP_CHARS
    held_out(letter, letter)
    assert time.process_time() - started < 2.0
