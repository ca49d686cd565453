"""Dead letters read back: what they say, which are meant, when that was."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.codec import Decoder, Encoder, load_schema
from consumer.errors import Fatal
from consumer.ops.anatomy import hex_lines
from consumer.ops.letters import Letter, Selection
from consumer.ops.moments import moment_ms, shown

MAIL = {
    "id": "m-1",
    "received_at": 5,
    "from": "a@b.org",
    "to": ["c@d.org"],
    "subject": "s" * 30,
    "body": "hello",
    "html": None,
    "headers": {},
}


def letter(place: tuple[int, int] = (0, 0), key: bytes | None = None, **ours: str) -> Letter:
    return Letter(place, key, b"v", 0, [], ours)


def test_a_letter_without_its_origin_says_so() -> None:
    assert letter().origin is None
    assert letter(topic="t", partition="1", offset="x").origin is None
    assert letter(topic="t", partition="1", offset="7").origin == (("t", 1), 7)
    assert letter(replays="many").replays == 0


@pytest.mark.parametrize(
    ("selection", "taken"),
    [
        (Selection(), True),
        (Selection(reasons=frozenset({"a", "b"})), True),
        (Selection(reasons=frozenset({"b"})), False),
        (Selection(keys=frozenset({"k"}), places=frozenset({(1, 2)})), True),
        (Selection(keys=frozenset({"k"}), places=frozenset({(1, 3)})), False),
        (Selection(since_ms=10, until_ms=11), True),
        (Selection(since_ms=11), False),
        (Selection(until_ms=10), False),
    ],
)
def test_a_letter_is_meant_when_all_that_is_named_agrees(selection: Selection, taken: bool) -> None:
    assert selection.takes(letter((1, 2), b"k", reason="a", failed_at_ms="10")) is taken


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("now", 1_000_000),
        ("90s", 910_000),
        ("0.5m", 970_000),
        ("1970-01-01", 0),
        ("1970-01-01T00:01", 60_000),
        ("1970-01-01T01:00+01:00", 0),
    ],
)
def test_moments_are_read(text: str, ms: int) -> None:
    assert moment_ms(text, now_ms=1_000_000) == ms


def test_what_is_no_moment_is_refused() -> None:
    with pytest.raises(Fatal, match="no moment"):
        moment_ms("yesterday")
    assert shown(0) == ""
    assert shown(60_000) == "1970-01-01 00:01:00"


@given(cut=st.integers(0, 200))
def test_a_cut_value_is_read_as_far_as_it_goes(cut: int) -> None:
    schema = load_schema("email")
    (value,) = Encoder(schema).encode_many([MAIL])
    assert isinstance(value, bytes)
    event, end = Decoder(schema).as_far_as_it_goes(value[:cut])
    assert end <= min(cut, len(value)) or not event
    assert list(event) == [field["name"] for field in schema.definition["fields"]][: len(event)]
    assert all(event[name] == MAIL[name] for name in event if name in MAIL)
    if cut >= len(value):
        assert end == len(value)
        assert event["subject"] == MAIL["subject"]


def test_what_has_no_known_frame_is_not_read() -> None:
    for value in (b"", b"\0", b"{", b"\xc3\x01" + bytes(8), b"\0\0\0\0\x01rest"):
        assert Decoder(load_schema("email")).as_far_as_it_goes(value) == ({}, 0)


def test_bytes_are_shown_in_rows() -> None:
    assert list(hex_lines(b"Kafka\0" + bytes(range(16)), 8)) == [
        "00000008  4b 61 66 6b 61 00 00 01 02 03 04 05 06 07 08 09  Kafka...........",
        "00000018  0a 0b 0c 0d 0e 0f                                ......",
    ]
