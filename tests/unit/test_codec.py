"""Frames, reasons, projection and older writers; results that fit and results that do not."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import fastavro
import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.codec import Decoder, Encoder, Schema, load_schema, read_container, write_container
from consumer.errors import BadRecord, Fatal, Retry
from tests.unit.avro_data import PATIENT, rows_of

CLICK = Schema.parse((Path(__file__).parent / "released_schemas" / "click.1.avsc").read_text())
SCORE = load_schema("click_score")
EMAIL = load_schema("email")
SECRET = "a word that must not get into a log"
ROW = {"id": "c-1", "user": "u", "product": SECRET, "kind": "view", "time": 1_700_000_000_000}
SCORE_ROW = {
    "event_id": "c-1",
    "source_topic": "clicks",
    "source_partition": 3,
    "source_offset": 123_456,
    "score": 0.25,
    "model": "clicks",
    "model_version": "1",
    "produced_at": 1_700_000_000_000,
}
MIXED = Schema.parse(
    json.dumps(
        {
            "type": "record",
            "name": "Mixed",
            "fields": [
                {"name": "id", "type": "string"},
                {"name": "yes", "type": "boolean"},
                {"name": "small", "type": "int"},
                {"name": "maybe", "type": ["null", "string", "boolean"], "default": None},
                {"name": "kind", "type": {"type": "enum", "name": "Kind", "symbols": ["a", "b"]}},
                {"name": "raw", "type": "bytes"},
                {"name": "four", "type": {"type": "fixed", "name": "Four", "size": 4}},
                {"name": "words", "type": {"type": "array", "items": "string"}},
                {"name": "counts", "type": {"type": "map", "values": "long"}},
                {
                    "name": "inner",
                    "type": {"type": "record", "name": "I", "fields": [{"name": "x", "type": "double"}]},
                },
                {"name": "last", "type": ["null", "string"], "default": None},
            ],
        }
    )
)


def encode(schema: Schema, row: dict[str, Any]) -> bytes:
    (value,) = Encoder(schema).encode_many([row])
    assert isinstance(value, bytes), value
    return value


def decode(schema: Schema, value: bytes | None, **options: Any) -> Any:
    (event,) = Decoder(schema, **options).decode_many([value])
    return event


def rejected(event: Any) -> BadRecord:
    assert type(event) is BadRecord, event
    assert event.stage == "decode"
    assert SECRET not in str(event)
    assert event.__traceback__ is None and event.__context__ is None
    return event


class Shelf:
    """A registry in memory."""

    def __init__(self, **texts: Sequence[str]) -> None:
        self.texts = {int(key[1:]): list(value) for key, value in texts.items()}
        self.asked: list[int] = []
        self.away = False

    def definitions(self, schema_id: int) -> Sequence[str]:
        self.asked.append(schema_id)
        if self.away:
            raise Retry("the registry is away")
        if schema_id not in self.texts:
            raise BadRecord("unknown_schema_id", f"no {schema_id}")
        return self.texts[schema_id]


@pytest.mark.parametrize("schema", [CLICK, SCORE, EMAIL, MIXED], ids=lambda schema: schema.name)
@PATIENT
@given(data=st.data())
def test_round_trip_in_both_frames(schema: Schema, data: st.DataObject) -> None:
    rows = data.draw(st.lists(rows_of(schema), max_size=4))
    registry = Shelf(_7=[schema.text])
    decoder = Decoder(schema, registry=registry)
    assert decoder.decode_many(Encoder(schema).encode_many(rows)) == rows  # type: ignore[arg-type]
    assert decoder.decode_many(Encoder(schema, schema_id=7).encode_many(rows)) == rows  # type: ignore[arg-type]
    assert len(registry.asked) <= 1


@pytest.mark.parametrize("schema", [CLICK, SCORE], ids=lambda schema: schema.name)
@PATIENT
@given(data=st.data())
def test_writing_by_columns_equals_writing_by_rows(schema: Schema, data: st.DataObject) -> None:
    """The second is what fastavro writes; grouping sets in where values repeat."""
    rows = data.draw(st.lists(rows_of(schema), max_size=4)) * data.draw(st.sampled_from([1, 30]))
    plain = {**schema.definition}
    expected = []
    for row in rows:
        stream = BytesIO()
        fastavro.schemaless_writer(stream, plain, row)
        expected.append(schema.prefix + stream.getvalue())
    assert Encoder(schema).encode_many(rows) == expected


def test_frames_are_as_specified() -> None:
    value = encode(CLICK, ROW)
    assert value[:2] == b"\xc3\x01" and value[:10] == CLICK.prefix
    (framed,) = Encoder(CLICK, schema_id=0x01020304).encode_many([ROW])
    assert framed == b"\0\x01\x02\x03\x04" + value[10:]


def test_timestamps_stay_integers() -> None:
    assert decode(CLICK, encode(CLICK, ROW)) == ROW


GOOD = encode(CLICK, ROW)
KIND_AT = len(GOOD) - 7
MALFORMED = [
    (None, "null_value", "no value"),
    (b"", "empty", "no bytes"),
    (b'{"id": 1}', "bad_frame", "0x7b22 is neither .* looks like JSON"),
    (b"Obj\x01abc", "bad_frame", "it is an Avro file"),
    (b"\xc3\x02" + GOOD[2:], "bad_frame", "version is not 1"),
    (b"\xff", "bad_frame", "byte 0: 0xff"),
    (GOOD[:7], "truncated", "frame has 10 bytes, there are 7"),
    (b"\0\0\0", "truncated", "frame has 5 bytes, there are 3"),
    (
        b"\xc3\x01" + bytes(8) + GOOD[10:],
        "unknown_schema",
        "fingerprint 0000000000000000 is none of [0-9a-f]{16}",
    ),
    (b"\0\0\0\0\x07" + GOOD[10:], "unknown_schema_id", "id 7, but no schema registry is configured"),
    (GOOD[:10], "truncated", "field `id`, byte 10 of 10"),
    (GOOD[:-1], "truncated", f"field `time`, byte {KIND_AT + 1} of {len(GOOD) - 1}"),
    (GOOD[:30], "truncated", "field `product`, byte 17 of 30: a string of 35 bytes is due, 13 are left"),
    (GOOD + b"\0", "trailing_bytes", f"ends at byte {len(GOOD)}, 1 more bytes follow"),
    (GOOD[:11] + b"\xff" + GOOD[12:], "bad_utf8", "field `id`, byte 11 of"),
    (GOOD[:10] + b"\x01" + GOOD[11:], "wrong_type", "a string of negative length -1"),
    (GOOD[:KIND_AT] + b"\x08" + GOOD[KIND_AT + 1 :], "wrong_type", "enum index 4, consumer.ClickKind has 4"),
    (GOOD[:KIND_AT] + b"\x01" + GOOD[KIND_AT + 1 :], "wrong_type", "enum index -1"),
    (GOOD[:10] + b"\xff" * 9 + b"\x01", "wrong_type", "negative length -9223372036854775808"),
    (GOOD[:10] + b"\xfe" + b"\xff" * 8 + b"\x01" + GOOD, "truncated", "9223372036854775807 bytes is due"),
]


@pytest.mark.parametrize(("value", "reason", "detail"), MALFORMED)
def test_malformed_value_has_a_reason_and_spares_its_neighbours(
    value: bytes | None, reason: str, detail: str
) -> None:
    first, bad, last = Decoder(CLICK).decode_many([GOOD, value, GOOD])
    assert first == last == ROW
    assert rejected(bad).reason == reason
    assert re.search(detail, rejected(bad).detail), rejected(bad).detail


MIXED_ROW = {
    "id": "i",
    "yes": True,
    "small": 1,
    "maybe": "m",
    "kind": "b",
    "raw": b"r",
    "four": b"1234",
    "words": ["w"],
    "counts": {"k": 1},
    "inner": {"x": 0.5},
    "last": "end",
}


def _swapped(at: int, *new: int) -> bytes:
    value = encode(MIXED, MIXED_ROW)
    return value[:at] + bytes(new) + value[at + len(new) :]


@pytest.mark.parametrize(
    ("value", "reason", "detail"),
    [
        (_swapped(12, 2), "wrong_type", "field `yes`, byte 12 of .* 0x02 is no boolean"),
        (_swapped(14, 1), "wrong_type", "field `maybe`, byte 14 of .* union index -1, there are 3 branches"),
        (_swapped(14, 6), "wrong_type", "field `maybe`, byte 14 of .* union index 3"),
        (_swapped(14, 4, 2), "wrong_type", "field `maybe`, byte 15 of .* 0x02 is no boolean"),
        (_swapped(24, 0xFE, 0xFF), "truncated", "field `words`, byte 27 of .* items are announced"),
        (_swapped(28, 0xFE, 0xFF), "truncated", "field `counts`, byte 31 of .* items are announced"),
        (_swapped(30, 0xFF), "bad_utf8", "field `counts key`, byte 30 of"),
        (
            encode(MIXED, MIXED_ROW)[:40],
            "truncated",
            "field `inner.x`, byte 33 of 40: a double of 8 bytes is due",
        ),
    ],
)
@pytest.mark.parametrize("fields", [None, ("yes", "maybe", "words", "counts", "inner")])
def test_types_are_checked(value: bytes, reason: str, detail: str, fields: Sequence[str] | None) -> None:
    bad = rejected(decode(MIXED, value, fields=fields))
    assert bad.reason == reason
    assert re.search(detail, bad.detail), bad.detail


@pytest.mark.parametrize("cut", range(11, len(encode(MIXED, MIXED_ROW))))
def test_a_truncated_value_is_found_even_where_its_end_is_not_read(cut: int) -> None:
    """fastavro skips past the end without a word."""
    assert rejected(decode(MIXED, encode(MIXED, MIXED_ROW)[:cut], fields=["yes"])).reason == "truncated"


def test_trailing_bytes_are_found_where_the_end_is_not_read() -> None:
    for more in (b"\0", b"\0\0"):
        assert (
            rejected(decode(MIXED, encode(MIXED, MIXED_ROW) + more, fields=["yes"])).reason
            == "trailing_bytes"
        )


def test_too_large() -> None:
    assert decode(CLICK, GOOD, max_record_bytes=len(GOOD)) == ROW
    bad = rejected(decode(CLICK, GOOD, max_record_bytes=len(GOOD) - 1))
    assert bad.reason == "too_large"
    assert f"{len(GOOD)} bytes, max_record_bytes is {len(GOOD) - 1}" in bad.detail


def test_only_the_fields_that_are_asked_for_and_the_id() -> None:
    assert decode(CLICK, GOOD, fields=["time"]) == {"id": "c-1", "time": ROW["time"]}
    assert decode(MIXED, encode(MIXED, MIXED_ROW), fields=["counts", "yes", "maybe"]) == {
        key: MIXED_ROW[key] for key in ("id", "yes", "maybe", "counts")
    }


def test_unknown_field_is_fatal() -> None:
    with pytest.raises(Fatal, match="no field colour; it has id, user"):
        Decoder(CLICK, fields=["colour"])


def _evolved(schema: Schema, *new: dict[str, Any], without: str = "") -> Schema:
    raw = json.loads(schema.text)
    raw["fields"] = [f for f in raw["fields"] if f["name"] != without] + list(new)
    return Schema.parse(json.dumps(raw))


def test_older_and_newer_writers() -> None:
    reader = _evolved(
        CLICK,
        {"name": "tags", "type": {"type": "array", "items": "string"}, "default": []},
        {"name": "raw", "type": "bytes", "default": "\u00ff"},
        {"name": "seen", "type": "boolean", "default": True},
    )
    newer = _evolved(reader, {"name": "more", "type": "string"}, without="user")
    reader = _evolved(reader, {"name": "user", "type": "string", "default": "?"}, without="user")
    decoder = Decoder(reader, [CLICK, newer])
    row = {**ROW, "tags": ["x"], "raw": b"r", "seen": False, "more": SECRET}
    del row["user"]
    first, second, third = decoder.decode_many([GOOD, GOOD, encode(newer, row)])
    assert first == {**ROW, "tags": [], "raw": b"\xff", "seen": True}
    assert third == {k: v for k, v in row.items() if k != "more"} | {"user": "?"}
    assert isinstance(first, dict)
    assert isinstance(second, dict)
    first["tags"].append("mine")
    assert second["tags"] == []


def test_an_older_writer_with_a_damaged_value() -> None:
    reader = _evolved(CLICK, {"name": "seen", "type": "boolean", "default": True}, without="time")
    bad = rejected(Decoder(reader, [CLICK]).decode_many([GOOD[:-1]])[0])
    assert bad.reason == "truncated" and "field `time`" in bad.detail


def test_a_writer_that_does_not_fit_is_named() -> None:
    reader = _evolved(CLICK, {"name": "must", "type": "string"})
    bad = rejected(Decoder(reader, [CLICK]).decode_many([GOOD])[0])
    assert bad.reason == "incompatible_schema"
    assert CLICK.prefix[2:].hex() in bad.detail and "must" in bad.detail


def test_registry_is_asked_once_for_each_id() -> None:
    registry = Shelf(_1=[CLICK.text])
    decoder = Decoder(CLICK, registry=registry)
    known, unknown = b"\0\0\0\0\x01" + GOOD[10:], b"\0\0\0\0\x02" + GOOD[10:]
    for _ in range(3):
        events = decoder.decode_many([known, unknown, known, unknown])
        assert events[0] == events[2] == ROW
        assert rejected(events[1]).reason == rejected(events[3]).reason == "unknown_schema_id"
    assert registry.asked == [1, 2]


def test_an_unknown_id_is_asked_for_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Shelf()
    decoder = Decoder(CLICK, registry=registry)
    value = b"\0\0\0\0\x01" + GOOD[10:]
    now = 1_000.0
    monkeypatch.setattr("consumer.codec.time.monotonic", lambda: now)
    assert rejected(decoder.decode_many([value])[0]).reason == "unknown_schema_id"
    registry.texts[1] = [CLICK.text]
    assert rejected(decoder.decode_many([value])[0]).reason == "unknown_schema_id"
    now += 31
    assert decoder.decode_many([value]) == [ROW]


def test_a_registry_that_is_away_is_no_reason_for_dead_letters() -> None:
    registry = Shelf(_1=[CLICK.text])
    registry.away = True
    decoder = Decoder(CLICK, registry=registry)
    values = [GOOD, b"\0\0\0\0\x01" + GOOD[10:], b"\0\0\0\0\x02"]
    with pytest.raises(Retry):
        decoder.decode_many(values)
    registry.away = False
    first, second, third = decoder.decode_many(values)
    assert first == second == ROW
    assert rejected(third).reason == "unknown_schema_id"


def test_a_hostile_schema_from_the_registry_costs_only_its_records() -> None:
    hostile = '{"type": "record", "name": "Click", "fields": [{"name": "f", "type": ["null", "Click"]}]}'
    decoder = Decoder(CLICK, registry=Shelf(_1=[hostile]))
    first, second = decoder.decode_many([b"\0\0\0\0\x01\0", GOOD])
    assert rejected(first).reason == "bad_schema"
    assert second == ROW


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        ({"score": "0.5"}, "field `score`: str where float is due"),
        ({"score": None}, "field `score`: NoneType where float is due"),
        ({"model": 3}, "field `model`: int where string is due"),
        ({"source_partition": 1 << 31}, "field `source_partition`: one out of range where int is due"),
        ({"source_offset": 1 << 63}, "field `source_offset`: one out of range where long is due"),
        ({"source_offset": 1.0}, "field `source_offset`: float where long is due"),
        ({"colour": SECRET}, "no field colour"),
        ({"model": "\ud800"}, "UnicodeEncodeError"),
    ],
)
def test_a_result_that_does_not_fit_is_explained(change: dict[str, Any], detail: str) -> None:
    first, bad, last = Encoder(SCORE).encode_many([SCORE_ROW, {**SCORE_ROW, **change}, SCORE_ROW])
    assert first == last == encode(SCORE, SCORE_ROW)
    assert isinstance(bad, BadRecord)
    assert (bad.reason, bad.stage) == ("result_does_not_fit", "encode")
    assert detail in bad.detail and "ClickScore" in bad.detail
    assert SECRET not in str(bad)


@pytest.mark.parametrize(
    ("row", "detail"),
    [
        ({k: v for k, v in SCORE_ROW.items() if k != "score"}, "missing: score"),
        ([], "must be a dict, not list"),
        (None, "must be a dict, not NoneType"),
    ],
)
def test_a_result_that_is_incomplete_or_no_dict(row: Any, detail: str) -> None:
    (bad,) = Encoder(SCORE).encode_many([row])
    assert isinstance(bad, BadRecord)
    assert detail in bad.detail


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        ({"kind": SECRET}, "field `kind`: str where one of a, b is due"),
        ({"yes": "yes"}, "field `yes`: str where boolean is due"),
        ({"yes": None}, "field `yes`: NoneType where boolean is due"),
        ({"small": 1 << 31}, "field `small`"),
        ({"maybe": 5}, "field `maybe`: int where null or string or boolean is due"),
        ({"maybe": ("string", SECRET)}, "field `maybe`: tuple where"),
        ({"four": b"12345"}, "field `four`: bytes where fixed is due"),
        ({"words": ["w", 3]}, "field `words`: int where string is due"),
        ({"counts": {"k": SECRET}}, "field `counts`: str where long is due"),
        ({"inner": {"x": SECRET}}, "x`: str where double is due"),
        ({"inner": {}}, "x`"),
    ],
)
def test_a_nested_result_that_does_not_fit_is_explained(change: dict[str, Any], detail: str) -> None:
    good, bad = Encoder(MIXED).encode_many([MIXED_ROW, {**MIXED_ROW, **change}])
    assert good == encode(MIXED, MIXED_ROW)
    assert isinstance(bad, BadRecord)
    assert detail in bad.detail, bad.detail
    assert SECRET not in str(bad)


def test_defaults_of_the_result_schema_are_filled_in() -> None:
    row = {k: v for k, v in MIXED_ROW.items() if k not in ("maybe", "last")}
    assert decode(MIXED, encode(MIXED, row)) == {**row, "maybe": None, "last": None}
    schema = _evolved(SCORE, {"name": "extra", "type": "string", "default": "-"})
    assert decode(schema, encode(schema, SCORE_ROW)) == {**SCORE_ROW, "extra": "-"}


def test_numpy_scalars_are_welcome() -> None:
    row = {**SCORE_ROW, "score": numpy.float32(0.25), "source_offset": numpy.int64(123_456)}
    assert encode(SCORE, row) == encode(SCORE, SCORE_ROW)
    (bad,) = Encoder(MIXED).encode_many([{**MIXED_ROW, "yes": numpy.bool_(True)}])
    assert "field `yes`: numpy.bool where boolean is due" in str(bad)


def test_equal_values_of_different_types_are_not_taken_for_one_another() -> None:
    rows = [{**SCORE_ROW, "source_offset": value} for value in [1] * 50 + [True, 1.0]]
    *good, truth, real = Encoder(SCORE).encode_many(rows)
    assert set(good) == {encode(SCORE, {**SCORE_ROW, "source_offset": 1})}
    assert isinstance(truth, BadRecord) and isinstance(real, BadRecord)


def test_signs_of_zero_survive_grouping() -> None:
    rows = [{**SCORE_ROW, "score": value} for value in [0.0, -0.0] * 50]
    scores = [decode(SCORE, value)["score"] for value in Encoder(SCORE).encode_many(rows)]  # type: ignore[arg-type]
    assert [struct.pack("<f", s) for s in scores] == [struct.pack("<f", r["score"]) for r in rows]


def test_container_round_trip_with_plain_values(tmp_path: Path) -> None:
    path = tmp_path / "clicks.avro"
    rows = [{**ROW, "id": str(i)} for i in range(100)]
    write_container(path, CLICK, rows)
    assert list(read_container(path)) == rows
    with path.open("wb") as stream:  # with logical types in the file's schema
        fastavro.writer(stream, json.loads(CLICK.text), rows)
    assert list(read_container(path)) == rows


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"Obj\x01" + bytes(40)])
def test_a_file_that_is_no_container_is_fatal(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "mails.avro"
    path.write_bytes(content)
    with pytest.raises(Fatal, match=r"mails\.avro"):
        list(read_container(path))


def test_a_damaged_container_is_fatal(tmp_path: Path) -> None:
    path = tmp_path / "clicks.avro"
    write_container(path, CLICK, [ROW] * 100)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(Fatal, match=r"clicks\.avro"):
        list(read_container(path))


def test_a_missing_file_is_fatal(tmp_path: Path) -> None:
    with pytest.raises(Fatal, match="none here"):
        list(read_container(tmp_path / "none here"))
