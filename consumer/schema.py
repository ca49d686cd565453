"""Schemas: where their files are, how they are parsed, and what they must not ask for.

Whoever writes a schema decides how much memory and time a small value may cost its reader: recursion, lists of items
that take no bytes, records that double a hundred times.  Such schemas are refused before a value is read with them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fastavro
from fastavro.schema import SchemaParseException, fingerprint, to_parsing_canonical_form

from consumer.errors import BadRecord, Fatal

__all__ = ["SINGLE_OBJECT", "Schema", "load_older", "load_schema", "short", "strict_definition"]

SINGLE_OBJECT = b"\xc3\x01"

_MAX_TEXT_BYTES = 1 << 20
_MAX_DEPTH = 32
_MAX_NODES = 10_000
"""Types in a schema when every reference is written out."""
_MAX_FIXED_BYTES = 1 << 20
_KEPT = ("type", "name", "namespace", "fields", "items", "values", "symbols", "size", "default", "aliases")


@dataclass(frozen=True, slots=True, eq=False)
class Schema:
    """A record schema, parsed once."""

    name: str
    """Full name: `consumer.Email`."""
    text: str
    """As it was written, with its documentation."""
    canonical: str
    """Parsing Canonical Form."""
    prefix: bytes
    """What a single-object value begins with: `C3 01` + fingerprint (CRC-64-AVRO, little endian)."""
    definition: Mapping[str, Any]
    """Parsed, without logical types."""
    named: Mapping[str, Any]

    @classmethod
    def parse(cls, text: str, *, after: Sequence[str] = ()) -> Schema:
        """A schema from its JSON text; `after` are the texts of the types it refers to, in order of their references.

        Raises BadRecord `bad_schema` for one that is invalid or could cost its reader more than its bytes justify.
        """
        named: dict[str, Any] = {}
        try:
            for earlier in after:
                fastavro.parse_schema(_parse_json(earlier), named, _write_hint=False)
            definition = fastavro.parse_schema(_parse_json(text), named)
            if not isinstance(definition, dict) or definition["type"] != "record":
                raise SchemaParseException("it is no record")
            _check_cost(definition, named)
            canonical = to_parsing_canonical_form(definition)
        except BadRecord:
            raise
        except Exception as error:
            why = f"{type(error).__name__}: {short(error)}"
            raise BadRecord("bad_schema", f"the schema is no valid Avro record schema ({why})") from error
        prefix = SINGLE_OBJECT + bytes.fromhex(fingerprint(canonical, "CRC-64-AVRO"))
        return cls(definition["name"], text, canonical, prefix, definition, named)

    def select(self, fields: Iterable[str]) -> Schema:
        """The same with only these top-level fields, and what names the event.

        Raises Fatal for a field that is not there.
        """
        have = [field["name"] for field in self.definition["fields"]]
        if missing := sorted(set(fields) - set(have)):
            raise Fatal(f"{self.name} has no field {', '.join(missing)}; it has {', '.join(have)}")
        kept = [field for field in self.definition["fields"] if field["name"] in {"id", "event_id", *fields}]
        definition = {**self.definition, "fields": kept}
        return replace(self, canonical=to_parsing_canonical_form(definition), definition=definition)

    def first(self, count: int) -> Schema:
        """The same with its first `count` fields only."""
        definition = {**self.definition, "fields": self.definition["fields"][:count]}
        return replace(self, canonical=to_parsing_canonical_form(definition), definition=definition)


def load_schema(name: str, search: Sequence[Path] = ()) -> Schema:
    """The schema in `name`.avsc: from the folders of `search` in their order, else from those that are shipped.

    Raises Fatal when there is none or it is refused.
    """
    text = _find(name, search)
    try:
        return Schema.parse(text)
    except BadRecord as error:
        raise Fatal(f"{name}.avsc: {error.detail}") from error


def load_older(name: str, search: Sequence[Path] = ()) -> list[Schema]:
    """Earlier versions that may still be on a topic: all `name.*.avsc` of the same folders, by file name.

    Where no registry is, a reader must know its writers.  Raises Fatal for one that is refused.
    """
    files = [file for folder in _folders(search) for file in sorted(folder.glob(f"{name}.*.avsc"))]
    return [load_schema(file.stem, [file.parent]) for file in files]


_NO_BRANCH = ["no such branch"] * 64
"""As many as there are negative indices of one byte."""


def strict_definition(schema: Schema, *, writer: bool) -> dict[str, Any]:
    """The definition as fastavro's reader shall see it.

    Left alone it takes index -1 of an enum or union for the last one, and any byte but 0 for true.  So a writer's enum
    gets a mapping without a -1, its unions get further branches of an unknown type, where -1 and its like end, and
    booleans become enums of their two bytes (0 and -1 as zigzag numbers).
    """

    def strict(node: Any) -> Any:
        if isinstance(node, list):
            return [*map(strict, node), *(_NO_BRANCH if writer else ())]
        if isinstance(node, str):
            return boolean if node == "boolean" else node
        if node["type"] == "boolean":
            return boolean
        new = dict(node)
        if "fields" in node:
            new["fields"] = [
                _typed_default(field) | {"type": strict(field["type"])} for field in node["fields"]
            ]
        for key in ("items", "values"):
            if key in node:
                new[key] = strict(node[key])
        if node["type"] == "enum" and writer:
            new["symbols"] = dict(enumerate(node["symbols"]))
        return new

    boolean = {
        "type": "enum",
        "name": "boolean!",
        "symbols": {0: False, -1: True} if writer else [False, True],
    }
    named = {name: strict(node) for name, node in schema.named.items()}
    return {**strict(schema.definition), "__fastavro_parsed": True, "__named_schemas": named}


def _typed_default(field: dict[str, Any]) -> dict[str, Any]:
    """JSON has no bytes: a default of such a field stands there as text, a byte in each character."""
    kind = field["type"][0] if isinstance(field["type"], list) and field["type"] else field["type"]
    if isinstance(field.get("default"), str) and (
        kind == "bytes" or (isinstance(kind, dict) and kind["type"] == "fixed")
    ):
        return {**field, "default": field["default"].encode("latin-1")}
    return dict(field)


def short(error: Exception) -> str:
    """Text of an error of fastavro's less the schemas that it quotes."""
    return re.sub(r"\{.*\}|\[.*\]", "…", " ".join(str(error).split()))[:300]


def _find(name: str, search: Sequence[Path] = ()) -> str:
    """Text of `name`.avsc: from the folders of `search` in their order, else from those that are shipped.

    Raises Fatal when there is none, and says what there is.
    """
    folders = _folders(search)
    for folder in folders:
        file = folder / f"{name}.avsc"
        if file.is_file():
            try:
                return file.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise Fatal(f"schema file {file} cannot be read: {error}") from error
    known = sorted({file.stem for folder in folders for file in folder.glob("*.avsc")})
    raise Fatal(
        f"there is no schema {name!r}: looked for {name}.avsc in {', '.join(map(str, folders))}; found "
        f"{', '.join(known) or 'none at all'}. Put the file beside the module of your task"
    )


def _folders(search: Sequence[Path]) -> list[Path]:
    """Where schemas may be; the last is that of the package: inside it in a wheel, beside it in a checkout."""
    beside = Path(__file__).parent
    return [*search, beside / "schemas" if (beside / "schemas").is_dir() else beside.parent / "schemas"]


def _parse_json(text: str) -> Any:
    """The schema in `text` less all that reading does not need: docs, logical types, properties of others.

    Raises BadRecord `bad_schema`.
    """
    if len(text) > _MAX_TEXT_BYTES:
        raise _refused(f"its text has {len(text)} characters, {_MAX_TEXT_BYTES} are allowed")
    try:
        return _clean(json.loads(text), 0)
    except (ValueError, RecursionError) as error:
        raise _refused(f"it is no JSON ({type(error).__name__})") from error


def _check_cost(schema: Any, named: Mapping[str, Any]) -> None:
    """Refuse a parsed schema whose values could cost more than their bytes justify.  Raises BadRecord `bad_schema`."""
    _Costs(named).of(schema, ())


def _refused(why: str) -> BadRecord:
    return BadRecord("bad_schema", f"the schema is refused: {why}")


def _clean(node: Any, depth: int) -> Any:
    if depth > 4 * _MAX_DEPTH:
        raise _refused(f"types are nested deeper than {_MAX_DEPTH}")
    if isinstance(node, list):
        return [_clean(branch, depth + 1) for branch in node]
    if not isinstance(node, dict):
        return node
    if node.get("logicalType") == "decimal" and node.get("type") == "bytes":
        raise _refused(
            "it has a decimal on bytes of any length; use a decimal on fixed, or a long of the smallest unit"
        )
    kept = {key: node[key] for key in _KEPT if key in node}
    for key in ("type", "items", "values"):
        if isinstance(kept.get(key), dict | list):
            kept[key] = _clean(kept[key], depth + 1)
    if isinstance(kept.get("fields"), list):
        kept["fields"] = [_clean(field, depth + 1) for field in kept["fields"]]
    return kept["type"] if list(kept) == ["type"] else kept


class _Costs:
    """Walks a schema with its references written out; each named type is walked once."""

    def __init__(self, named: Mapping[str, Any]) -> None:
        self.named = named
        self.known: dict[str, tuple[int, int, int]] = {}

    def of(self, node: Any, above: tuple[str, ...]) -> tuple[int, int, int]:
        """(types written out, depth, smallest number of bytes of a value)."""
        if isinstance(node, list):
            nodes, depth, _ = self.all(node, above)
            cost = (nodes, depth, 1)
        elif isinstance(node, dict) and "name" in node:
            cost = self.of_name(node["name"], node, above)
        elif isinstance(node, dict) and node["type"] in ("array", "map"):
            nodes, depth, smallest = self.of(node["items" if node["type"] == "array" else "values"], above)
            if smallest == 0:
                raise _refused(
                    f"it has {node['type']}s of items that take no bytes: two bytes could announce billions"
                )
            cost = (nodes, depth, 1)
        elif isinstance(node, dict):
            return self.of(node["type"], above)
        elif node in self.named:
            return self.of_name(node, self.named[node], above)
        else:
            return 1, 1, {"null": 0, "float": 4, "double": 8}.get(node, 1)
        if cost[0] >= _MAX_NODES:
            raise _refused(f"it has more than {_MAX_NODES} types when references are written out")
        if cost[1] >= _MAX_DEPTH:
            raise _refused(f"types are nested deeper than {_MAX_DEPTH}")
        return cost[0] + 1, cost[1] + 1, cost[2]

    def of_name(self, name: str, node: Any, above: tuple[str, ...]) -> tuple[int, int, int]:
        if name in above:
            raise _refused(f"{name} contains itself")
        if name not in self.known:
            if node["type"] == "fixed":
                size = node["size"]
                if type(size) is not int or not 0 <= size <= _MAX_FIXED_BYTES:
                    raise _refused(f"the size of fixed {name} is not between 0 and {_MAX_FIXED_BYTES}")
                self.known[name] = (1, 1, size)
            elif node["type"] == "enum":
                self.known[name] = (1, 1, 1)
            else:
                self.known[name] = self.all([field["type"] for field in node["fields"]], (*above, name))
        return self.known[name]

    def all(self, parts: Sequence[Any], above: tuple[str, ...]) -> tuple[int, int, int]:
        costs = [self.of(part, above) for part in parts]
        return sum(c[0] for c in costs), max((c[1] for c in costs), default=0), sum(c[2] for c in costs)
