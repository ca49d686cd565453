"""Shipped schemas: documented, findable, compatible with what was released; hostile ones are refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.codec import Decoder, Encoder, Schema, load_older, load_schema
from consumer.errors import BadRecord, Fatal
from tests.unit.avro_data import PATIENT, rows_of

SHIPPED = Path(__file__).parents[2] / "schemas"
RELEASED = Path(__file__).parent / "released_schemas"
NAMES = sorted(file.stem for file in SHIPPED.glob("*.avsc") if "." not in file.stem)
RELEASES = sorted(RELEASED.glob("*.avsc"))
PROVENANCE = {
    "event_id": "string",
    "source_topic": "string",
    "source_partition": "int",
    "source_offset": "long",
    "model": "string",
    "model_version": "string",
    "produced_at": "long",
}


def record(*fields: dict[str, Any], name: str = "R") -> str:
    return json.dumps({"type": "record", "name": name, "fields": list(fields)})


def field(kind: Any, name: str = "f", **more: Any) -> dict[str, Any]:
    return {"name": name, "type": kind, **more}


def _undocumented(node: Any, where: str) -> Iterator[str]:
    if isinstance(node, list):
        for branch in node:
            yield from _undocumented(branch, where)
    if isinstance(node, dict):
        if node["type"] in ("record", "enum", "fixed") and not node.get("doc"):
            yield where
        for part in node.get("fields", ()):
            if not part.get("doc"):
                yield f"{where}.{part['name']}"
            yield from _undocumented(part["type"], f"{where}.{part['name']}")
        for key in ("items", "values"):
            yield from _undocumented(node.get(key), where)


@pytest.mark.parametrize("name", NAMES)
def test_every_record_and_field_is_documented(name: str) -> None:
    assert list(_undocumented(json.loads(load_schema(name).text), name)) == []


@pytest.mark.parametrize("name", NAMES)
def test_every_shipped_schema_has_a_released_version(name: str) -> None:
    assert list(RELEASED.glob(f"{name}.*.avsc"))


@pytest.mark.parametrize(
    "name",
    ["spam_verdict", "click_score", "discount_decision", "recommendation", "detection", "answer", "insight"],
)
def test_results_say_where_they_come_from(name: str) -> None:
    fields = {f["name"]: f["type"] for f in load_schema(name).definition["fields"]}
    assert {key: fields.get(key) for key in PROVENANCE} == PROVENANCE


def _read_as(writer: Schema, reader: Schema, row: dict[str, Any]) -> Any:
    (event,) = Decoder(reader, [writer]).decode_many(Encoder(writer).encode_many([row]))  # type: ignore[arg-type]
    return event


@pytest.mark.parametrize("release", RELEASES, ids=lambda path: path.stem)
@PATIENT
@given(data=st.data())
def test_current_and_released_schemas_read_each_other(release: Path, data: st.DataObject) -> None:
    old, new = Schema.parse(release.read_text()), load_schema(release.name.split(".")[0])
    for writer, reader in ((old, new), (new, old)):
        row = data.draw(rows_of(writer))
        event = _read_as(writer, reader, row)
        assert isinstance(event, dict), event
        names = {f["name"] for f in reader.definition["fields"]}
        assert event.keys() == names
        assert {k: v for k, v in event.items() if k in row} == {k: v for k, v in row.items() if k in names}


def test_workers_read_clicks_of_the_first_version() -> None:
    old = Schema.parse((RELEASED / "click.1.avsc").read_text())
    row = {"id": "1", "user": "u", "product": "p", "kind": "cart", "time": 1}
    (event,) = Decoder(load_schema("click"), load_older("click")).decode_many(Encoder(old).encode_many([row]))  # type: ignore[arg-type]
    assert isinstance(event, dict), event
    assert event.items() >= row.items() and event["price"] is None and event["quantity"] == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda fields: fields.append(field("string", "new")),
        lambda fields: fields[0].update(type="long"),
        lambda fields: fields[3]["type"].update(symbols=["look"]) or fields[3]["type"].pop("default"),
    ],
    ids=["new field without default", "other type", "symbol gone"],
)
def test_the_check_of_evolution_finds_an_incompatible_change(change: Any) -> None:
    old = load_schema("click")
    raw = json.loads(old.text)
    change(raw["fields"])
    row = {"id": "1", "user": "u", "product": "p", "kind": "cart", "time": 1}
    event = _read_as(old, Schema.parse(json.dumps(raw)), row)
    assert isinstance(event, BadRecord)
    assert event.reason == "incompatible_schema"
    assert "consumer.Click" in event.detail


def _crc_64_avro(data: bytes) -> int:
    """Bit by bit, as the Avro specification defines it."""
    empty = 0xC15D213AA4D7A795
    crc = empty
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (empty if crc & 1 else 0)
    return crc


@pytest.mark.parametrize("name", NAMES)
def test_prefix_is_the_fingerprint_of_the_canonical_form(name: str) -> None:
    schema = load_schema(name)
    assert schema.prefix == b"\xc3\x01" + _crc_64_avro(schema.canonical.encode()).to_bytes(8, "little")


def test_canonical_form_follows_the_specification() -> None:
    schema = Schema.parse(
        '{"doc": "d", "fields": [{"doc": "d", "type": {"logicalType": "timestamp-millis", "type": "long"}, '
        '"name": "t"}, {"name": "e", "type": {"symbols": ["A"], "name": "E", "type": "enum"}, "default": "A"}],'
        ' "namespace": "n.s", "name": "R", "type": "record"}'
    )
    assert schema.canonical == (
        '{"name":"n.s.R","type":"record","fields":[{"name":"t","type":"long"},'
        '{"name":"e","type":{"name":"n.s.E","type":"enum","symbols":["A"]}}]}'
    )


def test_a_task_may_bring_its_own_schemas_and_its_folder_comes_first(tmp_path: Path) -> None:
    (tmp_path / "shouted.avsc").write_text(record(field("string", "text"), name="Shouted"))
    (tmp_path / "click.avsc").write_text(record(field("string", "id"), name="MyClick"))
    assert load_schema("shouted", [tmp_path]).name == "Shouted"
    assert load_schema("click", [tmp_path]).name == "MyClick"
    assert load_schema("email", [tmp_path]).name == "consumer.Email"


def test_older_versions_lie_beside_the_current_one(tmp_path: Path) -> None:
    first, second = record(field("string", "id")), record(field("string", "id"), field("int", default=5))
    (tmp_path / "thing.1.avsc").write_text(first)
    (tmp_path / "thing.avsc").write_text(second)
    (tmp_path / "thing_else.1.avsc").write_text("{")
    (older,) = load_older("thing", [tmp_path])
    assert older.text == first
    assert _read_as(older, load_schema("thing", [tmp_path]), {"id": "a"}) == {"id": "a", "f": 5}
    (tmp_path / "thing.2.avsc").write_text("{")
    with pytest.raises(Fatal, match=r"thing\.2\.avsc"):
        load_older("thing", [tmp_path])


def test_a_missing_schema_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(Fatal, match=r"no schema 'emial'.*spam_verdict") as caught:
        load_schema("emial", [tmp_path])
    assert str(tmp_path) in str(caught.value)


def test_a_refused_schema_file_is_fatal_and_named(tmp_path: Path) -> None:
    (tmp_path / "odd.avsc").write_text("{")
    with pytest.raises(Fatal, match=r"odd\.avsc: .*no JSON"):
        load_schema("odd", [tmp_path])


def _doubling(levels: int) -> dict[str, Any]:
    node: Any = "null"
    for level in range(levels):
        fields = [field(node, "a"), field(f"R{level - 1}" if level else "null", "b")]
        node = {"type": "record", "name": f"R{level}", "fields": fields}
    return dict(node)


def _nested(levels: int) -> Any:
    node: Any = "int"
    for _ in range(levels):
        node = {"type": "array", "items": node}
    return node


EMPTY = {"type": "record", "name": "E", "fields": []}
HOSTILE = {
    "contains itself": record(field(["null", "R"], default=None)),
    "E contains itself": record(
        field({"type": "record", "name": "E", "fields": [field({"type": "array", "items": "E"})]})
    ),
    "arrays of items that take no bytes": record(field({"type": "array", "items": "null"})),
    "arrays of items that take no bytes ": record(field({"type": "array", "items": EMPTY})),
    "arrays of items that take no bytes  ": record(
        field({"type": "array", "items": {"type": "fixed", "name": "F", "size": 0}})
    ),
    "arrays of items that take no bytes   ": record(
        field(EMPTY), field({"type": "array", "items": "E"}, "g")
    ),
    "maps of items that take no bytes": record(field({"type": "map", "values": "null"})),
    "decimal on bytes": record(
        field({"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2})
    ),
    "more than 10000 types": json.dumps(_doubling(30)),
    "nested deeper": record(field(_nested(60))),
    "nested deeper ": json.dumps(_nested(300)),
    "no JSON": "[" * 100_000,
    "size of fixed F": record(field({"type": "fixed", "name": "F", "size": 1 << 40})),
    "size of fixed F ": record(field({"type": "fixed", "name": "F", "size": -1})),
    "characters": record(field("string"), name="R" * (1 << 20)),
    "no valid Avro": record(field("strign")),
    "no valid Avro ": record({"name": "f"}),
    "no valid Avro  ": '"string"',
    "no valid Avro   ": '{"type": "record", "name": 5, "fields": [[]]}',
    "no valid Avro    ": '{"type": ["null", "string"]}',
    "no valid Avro     ": record(field({"type": "enum", "name": "E"})),
}


@pytest.mark.parametrize(("why", "text"), HOSTILE.items())
def test_hostile_schema_is_refused(why: str, text: str) -> None:
    with pytest.raises(BadRecord, match=why.strip()) as caught:
        Schema.parse(text)
    assert caught.value.reason == "bad_schema"
    assert len(caught.value.detail) < 600


def test_what_only_looks_hostile_is_accepted() -> None:
    Schema.parse(
        record(field({"type": "fixed", "name": "D", "size": 8, "logicalType": "decimal", "precision": 9}))
    )
    Schema.parse(record(field(_nested(20))))
    Schema.parse(record(field(EMPTY), field({"type": "array", "items": ["null", "E"]}, "g")))


def test_types_of_another_schema_may_be_referred_to() -> None:
    inner = '{"type": "record", "name": "n.Inner", "fields": [{"name": "x", "type": "int"}]}'
    outer = record(field("n.Inner"), field({"type": "array", "items": "n.Inner"}, "g"))
    row = {"f": {"x": 1}, "g": [{"x": 2}, {"x": 3}]}
    schema = Schema.parse(outer, after=[inner])
    assert _read_as(schema, schema, row) == row
