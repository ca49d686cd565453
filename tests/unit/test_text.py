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


@pytest.mark.parametrize(
    "hiding",
    [
        "style='display :  none'",
        "STYLE='DISPLAY:NONE !important'",
        "style='display:/* no */none'",
        "style='visibility: hidden'",
        "style='font-size:0px'",
        "style='font-size: 0.0em;color:red'",
        "style='font-size:1px'",
        "style='opacity: 0'",
        "style='max-height:0;overflow:hidden'",
        "style='overflow : hidden; height:0px'",
        "style='mso-hide:all'",
        "style='text-indent:-9999px'",
        "style='position:absolute;left:-5000px'",
        "hidden",
    ],
)
def test_what_no_reader_sees_is_no_text(hiding: str) -> None:
    assert body_text("", f"<p>good</p><div {hiding}>poem <b>more</b></div><p>end</p>") == "good end"


@pytest.mark.parametrize(
    "style",
    ["font-size:0.8em", "font-size:10px", "font-size:1em", "opacity:0.9", "fill-opacity:0", "height:0", "left:-10px",
     "max-height:05px;overflow:hidden", "overflow:hidden;line-height:100%", "border-width:0;overflow:visible",
     "margin-left:-20px", "display:block"],
)  # fmt: skip
def test_what_a_reader_sees_is_text(style: str) -> None:
    assert body_text("", f"<p>good</p><div style='{style}'>read</div>") == "good read"


def test_hostile_html_says_what_it_shows_and_costs_no_time() -> None:
    shown = {
        "V<!-- x -->ia<!---->gra": "viagra",
        "<p>V\u200bi\u200ca\u00adgr\ufeffa": "viagra",
        "&#86;&#105;&#x61;gra &lt;b&gt;": "viagra b",
        "<p>good</p><!-- <p>poem</p>": "good",
        "<p title='a > b <i hidden>'>good</p>": "good",
        "<style>p {color: red}</style><script>var x = '<p>poem'</script>good": "good",
        "<table><tr><td>a<table><tr><td>b</table></table>c": "a b c",
        "<p>good</p><!--[if mso]><p>poem</p><![endif]-->": "good",
    }
    assert {markup: body_text("", markup) for markup in shown} == shown
    nests = [
        "<div>",
        "<b>",
        "<table><tr><td>",
        "<b><i><p>",
        "<i style=display:none>",
        "<!--",
        "<",
        "&",
        "<p style='",
    ]
    for nest in nests:
        begun = time.process_time()
        body_text("", nest * (5_000_000 // len(nest)))
        body_text(nest * (5_000_000 // len(nest)))
        assert time.process_time() - begun < 5.0, nest


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
