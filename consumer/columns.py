"""Flat results to Avro, a field of all rows at a time: what makes writing small results cheap.

A column with few distinct values (topic, partition, model, label, time) is encoded once for each distinct value, and
nearly all work is done inside C loops.  It takes only the plain cases; whoever calls it falls back to fastavro.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import repeat
from numbers import Real
from operator import itemgetter
from typing import Any

__all__ = ["Columns", "Unsuited", "varint"]

_Column = Callable[[list[Any]], list[Iterable[bytes]]]
"""Values of one field in, the byte columns that stand for it out."""
_SHORT = [bytes((n,)) if n < 0x80 else bytes((n & 0x7F | 0x80, n >> 7)) for n in range(0x4000)]
_MORE = [bytes((n & 0x7F | 0x80, n >> 7 | 0x80)) for n in range(0x4000)]
_FEW = 8
"""A column is worth grouping where each value occurs this often on average."""


class Unsuited(Exception):
    """These rows need the general writer, which also finds out whether something is wrong with them."""


def varint(number: int) -> bytes:
    """Avro's encoding of an int or a long of at most 64 bits."""
    left = number << 1 if number >= 0 else ~(number << 1)
    if left < 0x4000:
        return _SHORT[left]
    if left < 0x1000_0000:
        return _MORE[left & 0x3FFF] + _SHORT[left >> 14]
    pieces = []
    while left >= 0x4000:
        pieces.append(_MORE[left & 0x3FFF])
        left >>= 14
    return b"".join(pieces) + _SHORT[left]


class Columns:
    """Writes rows of a record whose fields are strings, numbers, booleans and enums.

    Raises Unsuited when built for any other.
    """

    def __init__(self, definition: Mapping[str, Any]) -> None:
        fields = definition["fields"]
        if not fields:
            raise Unsuited
        self._columns = {field["name"]: _column(field["type"]) for field in fields}

    def write(
        self, prefix: bytes, rows: Sequence[Mapping[str, Any]], beside: Mapping[str, list[Any]]
    ) -> list[bytes]:
        """One value for each row, `prefix` first; `beside` has the fields that stand in no row, a list each.

        Raises Unsuited unless all rows are plain and complete.
        """
        pieces: list[Iterable[bytes]] = [repeat(prefix, len(rows))]
        width = len(self._columns) - len(beside)
        try:
            if any(map(width.__ne__, map(len, rows))):
                raise Unsuited
            for name, column in self._columns.items():
                pieces += column(beside[name] if name in beside else list(map(itemgetter(name), rows)))
            return list(map(b"".join, zip(*pieces, strict=True)))
        except (TypeError, KeyError, ValueError, OverflowError, struct.error) as error:
            raise Unsuited from error


def _column(kind: Any) -> _Column:
    match kind:
        case "string":
            return _strings
        case "int":
            return lambda values: [_integers(values, 31)]
        case "long":
            return lambda values: [_integers(values, 63)]
        case "float":
            return lambda values: [map(struct.Struct("<f").pack, _reals(values))]
        case "double":
            return lambda values: [map(struct.Struct("<d").pack, _reals(values))]
        case "boolean":
            return lambda values: [map({False: b"\0", True: b"\1"}.__getitem__, _only(bool, values))]
        case {"type": "enum", "symbols": [*symbols]}:
            codes = {symbol: varint(index) for index, symbol in enumerate(symbols)}
            return lambda values: [map(codes.__getitem__, values)]
    raise Unsuited


def _only(kind: type, values: list[Any]) -> list[Any]:
    """The values, if all are of exactly this type: equal values of other types would be taken for one another."""
    if set(map(type, values)) - {kind}:
        raise Unsuited
    return values


def _reals(values: list[Any]) -> list[Any]:
    """The values, if all are what fastavro takes for real numbers: a row must not fit only among its like."""
    if not all(issubclass(kind, Real) and not issubclass(kind, bool) for kind in set(map(type, values))):
        raise Unsuited
    return values


def _grouped(encode: Callable[[Any], bytes], values: list[Any]) -> Iterator[bytes] | None:
    distinct = set(values)
    if len(distinct) * _FEW > len(values):
        return None
    return map({value: encode(value) for value in distinct}.__getitem__, values)


def _string(text: str) -> bytes:
    data = text.encode()
    return varint(len(data)) + data


def _strings(values: list[Any]) -> list[Iterable[bytes]]:
    if grouped := _grouped(_string, _only(str, values)):
        return [grouped]
    data = list(map(str.encode, values))
    return [map(varint, map(len, data)), data]


def _integers(values: list[Any], bits: int) -> Iterable[bytes]:
    _only(int, values)
    if values and (min(values) < -(1 << bits) or max(values) >= 1 << bits):
        raise Unsuited
    return _grouped(varint, values) or map(varint, values)
