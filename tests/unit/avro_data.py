"""Hypothesis strategies made from Avro schemas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from consumer.codec import Schema

PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""A busy machine is no error."""

_PRIMITIVES: dict[str, st.SearchStrategy[Any]] = {
    "null": st.none(),
    "boolean": st.booleans(),
    "int": st.integers(-(2**31), 2**31 - 1),
    "long": st.integers(-(2**63), 2**63 - 1),
    "float": st.floats(width=32, allow_nan=False),
    "double": st.floats(allow_nan=False),
    "bytes": st.binary(max_size=200),
    "string": st.text(max_size=200),
}


def rows_of(schema: Schema) -> st.SearchStrategy[dict[str, Any]]:
    """Dicts that fit the schema."""
    return _values(schema.definition, schema.named)


def _values(node: Any, named: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    if isinstance(node, list):
        return st.one_of([_values(branch, named) for branch in node])
    if isinstance(node, str):
        return _PRIMITIVES[node] if node in _PRIMITIVES else _values(named[node], named)
    match node["type"]:
        case "record":
            return st.fixed_dictionaries({f["name"]: _values(f["type"], named) for f in node["fields"]})
        case "array":
            return st.lists(_values(node["items"], named), max_size=5)
        case "map":
            return st.dictionaries(st.text(max_size=10), _values(node["values"], named), max_size=5)
        case "enum":
            return st.sampled_from(node["symbols"])
        case "fixed":
            return st.binary(min_size=node["size"], max_size=node["size"])
        case primitive:
            return _values(primitive, named)
