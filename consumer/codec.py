"""Avro to events and results to Avro: the only door to fastavro.

A value on a topic is a frame and an Avro datum.  Two frames are known, and the first byte tells them apart: `00` +
4-byte schema id (Confluent, needs a registry), `C3 01` + CRC-64-AVRO fingerprint (Avro single-object encoding).

A malformed value becomes a `BadRecord` in its place and costs its neighbours nothing.  Events carry plain Avro values:
a timestamp stays an integer in the unit of its schema.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import fastavro
from fastavro.validation import ValidationError, validate

from consumer.columns import Columns, Unsuited
from consumer.errors import BadRecord, Fatal
from consumer.records import Event
from consumer.schema import SINGLE_OBJECT, Schema, load_older, load_schema, short, strict_definition
from consumer.wire import explain

__all__ = [
    "Decoder",
    "Definitions",
    "Encoder",
    "Schema",
    "load_older",
    "load_schema",
    "read_container",
    "write_container",
]

NOTHING: Mapping[str, list[Any]] = {}
_MAX_RECORD_BYTES = 4 << 20
_FORGET_UNKNOWN_S = 30.0
_MAX_UNKNOWN = 1_000
_SINGLE_OBJECT_BYTES, _CONFLUENT_BYTES = 10, 5
_LOOKS_LIKE = {
    b"{": "it looks like JSON",
    b"[": "it looks like JSON",
    b"Obj\x01": "it is an Avro file, not an Avro value",
    b"\xc3\x02": "its single-object version is not 1",
}
_SAY_NO_CONTENT = (TypeError, OverflowError, UnicodeEncodeError)
_BY_ERROR = (
    (UnicodeDecodeError, "bad_utf8"),
    (EOFError, "truncated"),
    (IndexError, "truncated"),
    (KeyError, "wrong_type"),
)


class Definitions(Protocol):
    """Where writers' schemas are looked up: a schema registry."""

    def definitions(self, schema_id: int) -> Sequence[str]:
        """JSON text of the schema with this id, after the texts of those that it refers to.

        Raises BadRecord `unknown_schema_id`, or Retry when the registry cannot be asked now.
        """
        ...


class _Plan(NamedTuple):
    """How to read what one writer wrote."""

    writer: dict[str, Any]
    reader: dict[str, Any] | None
    start: int
    """Length of the frame."""
    guard: bytes
    """Follows the value while fastavro resolves schemas: it skips unread fields past the end without a word, and then
    it stands behind the guard."""
    fresh: tuple[tuple[str, Any], ...]
    """Defaults that two events must not share."""
    source: Schema


class Decoder:
    """Reads the values of topics that carry one kind of event.  For one thread.

    `writers` are further known schemas (older versions); `fields` limits what is read, `id` is always read.
    """

    def __init__(
        self,
        reader: Schema,
        writers: Sequence[Schema] = (),
        *,
        registry: Definitions | None = None,
        fields: Sequence[str] | None = None,
        max_record_bytes: int = _MAX_RECORD_BYTES,
    ) -> None:
        self._reader = reader
        self._wanted = reader if fields is None else reader.select(fields)
        self._registry = registry
        self._max_record_bytes = max_record_bytes
        self._unknown: dict[bytes, tuple[BadRecord, float]] = {}
        self._plans: dict[bytes, _Plan] = {}
        for schema in (*writers, reader):
            self._plans[schema.prefix] = self._plan(schema, _SINGLE_OBJECT_BYTES)

    def decode_many(self, values: Sequence[bytes | None]) -> list[Event | BadRecord]:
        """One event or BadRecord for each value, in order.  Raises Retry when the registry is needed and away."""
        read, plan_of, limit = fastavro.schemaless_reader, self._plans.get, self._max_record_bytes
        events: list[Event | BadRecord] = []
        add = events.append
        for value in cast("Sequence[bytes]", values):  # None fails like any other malformed value
            plan = failure = None
            try:
                plan = plan_of(value[:5] if value[0] == 0 else value[:10])
                writer, reader, start, guard, fresh, _ = plan  # type: ignore[misc]  # None: not known yet
                size = len(value)
                if size <= limit:
                    stream = BytesIO(value + guard)
                    stream.seek(start)
                    event = cast("Event", read(stream, writer, reader))
                    if stream.tell() == size:
                        for name, default in fresh:
                            event[name] = copy.deepcopy(default)
                        add(event)
                        continue
            except Exception as error:
                failure = error
            add(self._look_closely(value, plan, failure))
            failure = None  # its traceback holds this frame, and with it all values
        return events

    def as_far_as_it_goes(self, value: bytes) -> tuple[Event, int]:
        """The leading fields of a malformed value as its writer meant them, and how many bytes frame and fields take.

        For people, one value at a time.  Nothing and 0 where the frame is not known.
        """
        try:
            prefix = value[:_CONFLUENT_BYTES] if value[:1] == b"\0" else value[:_SINGLE_OBJECT_BYTES]
            if prefix not in self._plans:
                self._learn(value)
        except (BadRecord, IndexError):
            return {}, 0
        plan = self._plans[prefix]
        event: Event = {}
        end = plan.start
        for count in range(1, len(plan.source.definition["fields"]) + 1):
            first = plan.source.first(count)
            stream = BytesIO(value)
            stream.seek(plan.start)
            try:
                event = cast(
                    "Event", fastavro.schemaless_reader(stream, strict_definition(first, writer=True), None)
                )
            except Exception:
                break
            end = stream.tell()
        return event, end

    def _look_closely(
        self, value: bytes | None, plan: _Plan | None, failure: Exception | None
    ) -> Event | BadRecord:
        """What to do with a value that could not be read at once."""
        if value is None:
            return _bad("null_value", "the record has no value")
        if not value:
            return _bad("empty", "the value has no bytes")
        if len(value) > self._max_record_bytes:
            return _bad("too_large", f"{len(value)} bytes, max_record_bytes is {self._max_record_bytes}")
        if plan is not None:
            return self._diagnose(plan, value, failure)
        try:
            self._learn(value)
        except BadRecord as error:
            return _bad(error.reason, error.detail)
        return self.decode_many([value])[0]

    def _diagnose(self, plan: _Plan, value: bytes, failure: Exception | None) -> BadRecord:
        if found := explain(plan.source.definition, plan.source.named, value, plan.start):
            return _bad(*found)
        for kind, reason in _BY_ERROR:
            if isinstance(failure, kind):
                return _bad(reason, f"somewhere in {len(value)} bytes ({type(failure).__name__})")
        if failure is None:
            return _bad("trailing_bytes", f"its {len(value)} bytes are not used up exactly")
        return _bad(
            "incompatible_schema",
            f"what {plan.source.name} ({plan.source.prefix[2:].hex()}) writes cannot be read as "
            f"{self._reader.name} ({self._reader.prefix[2:].hex()}): {short(failure)}",
        )

    def _learn(self, value: bytes) -> None:
        """Find out how to read what has this frame.  Raises BadRecord when nobody knows, Retry when to ask again."""
        if value[0] == 0:
            self._learn_id(value)
            return
        if not value.startswith(SINGLE_OBJECT):
            hint = next((text for start, text in _LOOKS_LIKE.items() if value.startswith(start)), "")
            text = f"byte 0: 0x{value[:2].hex()} is neither 0x00 nor 0xc301" + (f"; {hint}" if hint else "")
            raise BadRecord("bad_frame", text)
        prefix = value[:_SINGLE_OBJECT_BYTES]
        if len(prefix) < _SINGLE_OBJECT_BYTES:
            raise BadRecord(
                "truncated", f"the frame has {_SINGLE_OBJECT_BYTES} bytes, there are {len(value)}"
            )
        raise BadRecord(
            "unknown_schema",
            f"fingerprint {prefix[2:].hex()} is none of {', '.join(sorted(p[2:].hex() for p in self._plans if p[0]))}",
        )

    def _learn_id(self, value: bytes) -> None:
        prefix = value[:_CONFLUENT_BYTES]
        if len(prefix) < _CONFLUENT_BYTES:
            raise BadRecord("truncated", f"the frame has {_CONFLUENT_BYTES} bytes, there are {len(value)}")
        known = self._unknown.get(prefix)
        if known and time.monotonic() < known[1]:
            raise BadRecord(known[0].reason, known[0].detail)
        schema_id = int.from_bytes(prefix[1:], "big")
        try:
            if self._registry is None:
                raise BadRecord("unknown_schema_id", f"id {schema_id}, but no schema registry is configured")
            *after, text = self._registry.definitions(schema_id)
            self._plans[prefix] = self._plan(Schema.parse(text, after=after), _CONFLUENT_BYTES)
        except BadRecord as error:
            if len(self._unknown) >= _MAX_UNKNOWN:
                self._unknown.clear()
            self._unknown[prefix] = (_bad(error.reason, error.detail), time.monotonic() + _FORGET_UNKNOWN_S)
            raise

    def _plan(self, writer: Schema, start: int) -> _Plan:
        strict = strict_definition(writer, writer=True)
        if writer.canonical == self._wanted.canonical:
            return _Plan(strict, None, start, b"", (), writer)
        written = {field["name"] for field in writer.definition["fields"]}
        fresh = tuple(
            (field["name"], field["default"])
            for field in self._wanted.definition["fields"]
            if isinstance(field.get("default"), dict | list) and written.isdisjoint(_names(field))
        )
        return _Plan(strict, strict_definition(self._wanted, writer=False), start, b"\0", fresh, writer)


def _names(field: Mapping[str, Any]) -> set[str]:
    return {field["name"], *field.get("aliases", ())}


def _bad(reason: str, detail: str) -> BadRecord:
    return BadRecord(reason, detail, stage="decode")


class Encoder:
    """Writes results.  With a registry's `schema_id` in the Confluent frame, else as single objects."""

    def __init__(self, schema: Schema, *, schema_id: int | None = None) -> None:
        self._schema = schema
        self._prefix = schema.prefix if schema_id is None else b"\0" + schema_id.to_bytes(4, "big")
        self._columns: Columns | None = None
        with suppress(Unsuited):
            self._columns = Columns(schema.definition)

    def encode_many(
        self, rows: Sequence[Event], beside: Mapping[str, list[Any]] = NOTHING
    ) -> list[bytes | BadRecord]:
        """One framed value for each row, or BadRecord `result_does_not_fit`, in order.

        `beside` holds fields that all rows lack, a list as long as `rows` for each, which is cheaper than putting them
        into every row.  Where a row has such a field nevertheless, the row's counts.  With it rows must be mappings.
        """
        if self._columns is not None:
            with suppress(Unsuited):
                return cast("list[bytes | BadRecord]", self._columns.write(self._prefix, rows, beside))
        if not beside:
            return [self._encode(row) for row in rows]
        return [
            self._encode({**{name: values[i] for name, values in beside.items()}, **row})
            for i, row in enumerate(rows)
        ]

    def _encode(self, row: Event) -> bytes | BadRecord:
        stream = BytesIO()
        definition = cast("dict[str, Any]", self._schema.definition)
        try:
            # The writer alone makes 1 of 1.9 and true of "no", and cuts no int to 32 bits.
            validate(row, definition, disable_tuple_notation=True)  # type: ignore[call-arg]  # missing in its stub
            fastavro.schemaless_writer(
                stream, definition, row, strict_allow_default=True, disable_tuple_notation=True
            )
        except Exception as error:
            why = f"{self._schema.name}: {self._why(row, error)}"
            return BadRecord("result_does_not_fit", why, stage="encode")
        return self._prefix + stream.getvalue()

    def _why(self, row: Any, error: Exception) -> str:
        """Field and types; never content, for results may quote their event."""
        if not isinstance(row, dict):
            return f"a result must be a dict, not {type(row).__name__}"
        fields = self._schema.definition["fields"]
        if unknown := sorted(map(str, set(row) - {field["name"] for field in fields})):
            return f"the schema has no field {', '.join(unknown)}"
        if missing := [f["name"] for f in fields if f["name"] not in row and "default" not in f]:
            return f"missing: {', '.join(missing)}"
        if isinstance(error, ValidationError):
            first, *others = error.errors  # one for each branch of a union
            due = [_type_name(e.schema) for e in (first, *others) if e.field == first.field]
            field = (first.field or "").removeprefix(f"{self._schema.name}.")
            return f"field `{field}`: {_kind(first.datum, first.schema)} where {' or '.join(due)} is due"
        return (
            f"{type(error).__name__}: {error}" if isinstance(error, _SAY_NO_CONTENT) else type(error).__name__
        )


def _kind(value: Any, due: Any) -> str:
    kind = type(value)
    if kind is int and due in ("int", "long"):
        return "one out of range"
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"


def _type_name(node: Any) -> str:
    if isinstance(node, dict):
        return f"one of {', '.join(node['symbols'])}" if "symbols" in node else str(node["type"])
    return "union" if isinstance(node, list) else str(node)


def read_container(path: Path) -> Iterator[Event]:
    """The records of an Avro object container file, one at a time, as plain Avro values.

    Raises Fatal when it is none, is damaged, or has a schema that `Schema.parse` refuses.
    """
    try:
        with path.open("rb") as stream:
            avro = fastavro.reader(stream)
            Schema.parse(avro.metadata["avro.schema"])
            _without_logical_types(avro.writer_schema)
            yield from cast("Iterator[Event]", avro)
    except BadRecord as error:
        raise Fatal(f"{path}: {error.detail}") from error
    except Exception as error:
        raise Fatal(
            f"{path} cannot be read as an Avro file ({type(error).__name__}: {short(error)})"
        ) from error


def write_container(path: Path, schema: Schema, events: Iterable[Event]) -> None:
    """Write an Avro object container file (deflate)."""
    with path.open("wb") as stream:
        fastavro.writer(stream, dict(schema.definition), events, codec="deflate", strict_allow_default=True)


def _without_logical_types(node: Any) -> None:
    if isinstance(node, list):
        for part in node:
            _without_logical_types(part)
    elif isinstance(node, dict):
        node.pop("logicalType", None)
        for key in ("type", "items", "values", "fields"):
            _without_logical_types(node.get(key))
