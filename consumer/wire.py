"""Avro's wire format read slowly, to say what is wrong with a value that the fast reader refused.

`explain` walks a value without building anything.  Its text names field, byte and number, never content: dead letters
must not carry a mail into the logs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["explain"]

_MAX_STEPS = 20_000
"""Values walked before giving up: a block bomb would otherwise buy seconds of CPU with a megabyte of zeros."""
_MAX_VARINT_BYTES = 10


class _Malformed(Exception):
    """(reason, detail): where the walk ends."""


class _GaveUp(Exception):
    """The value is too long to walk."""


def explain(schema: Any, named: Mapping[str, Any], value: bytes, start: int) -> tuple[str, str] | None:
    """Reason and detail of what is wrong with `value` from byte `start` on; None if nothing is, or it is too long.

    `schema` is a parsed schema whose named types stand in `named`; positions count from the first byte of `value`.
    Reasons: `truncated`, `trailing_bytes`, `bad_utf8`, `wrong_type`.
    """
    walk = _Walk(named, value, start)
    try:
        walk.walk(schema, "")
    except _Malformed as wrong:
        reason, detail = wrong.args
        return reason, detail
    except _GaveUp:
        return None
    left = len(value) - walk.at
    if left:
        return "trailing_bytes", f"the value ends at byte {walk.at}, {left} more bytes follow"
    return None


class _Walk:
    def __init__(self, named: Mapping[str, Any], value: bytes, start: int) -> None:
        self.named = named
        self.data = value
        self.at = start
        self.steps = 0

    def walk(self, schema: Any, where: str) -> None:
        self.steps += 1
        if self.steps > _MAX_STEPS:
            raise _GaveUp
        kind = "union" if isinstance(schema, list) else schema["type"] if isinstance(schema, dict) else schema
        step = _STEPS.get(kind)
        if step is None:
            self.walk(self.named[kind], where)
        else:
            step(self, schema, where)

    def wrong(self, reason: str, where: str, text: str, at: int | None = None) -> _Malformed:
        place = f"field `{where}`, " if where else ""
        return _Malformed(reason, f"{place}byte {self.at if at is None else at} of {len(self.data)}: {text}")

    def take(self, size: int, where: str, what: str) -> None:
        left = len(self.data) - self.at
        if size > left:
            raise self.wrong("truncated", where, f"{what} of {size} bytes is due, {left} are left")
        self.at += size

    def varint(self, where: str) -> int:
        start, number, shift = self.at, 0, 0
        while True:
            if self.at >= len(self.data):
                raise self.wrong("truncated", where, "the value ends inside a number or before it", start)
            byte = self.data[self.at]
            self.at += 1
            number |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
            if self.at - start >= _MAX_VARINT_BYTES:
                raise self.wrong(
                    "wrong_type", where, f"a number longer than {_MAX_VARINT_BYTES} bytes", start
                )
        if number >> 64:
            raise self.wrong("wrong_type", where, "a number of more than 64 bits", start)
        return (number >> 1) ^ -(number & 1)

    def boolean(self, schema: Any, where: str) -> None:
        self.take(1, where, "a boolean")
        if (byte := self.data[self.at - 1]) > 1:
            raise self.wrong("wrong_type", where, f"0x{byte:02x} is no boolean (0x00, 0x01)", self.at - 1)

    def int(self, schema: Any, where: str) -> None:
        start = self.at
        if not -(2**31) <= (number := self.varint(where)) < 2**31:
            raise self.wrong("wrong_type", where, f"{number} is no 32-bit int", start)

    def sized(self, where: str, what: str) -> bytes:
        start = self.at
        size = self.varint(where)
        if size < 0:
            raise self.wrong("wrong_type", where, f"{what} of negative length {size}", start)
        self.take(size, where, what)
        return self.data[self.at - size : self.at]

    def string(self, schema: Any, where: str) -> None:
        text = self.sized(where, "a string")
        try:
            text.decode()
        except UnicodeDecodeError as error:
            at = self.at - len(text) + error.start
            raise self.wrong("bad_utf8", where, f"not UTF-8 ({error.reason})", at) from None

    def enum(self, schema: Any, where: str) -> None:
        start, symbols = self.at, schema["symbols"]
        if not 0 <= (index := self.varint(where)) < len(symbols):
            text = f"enum index {index}, {schema['name']} has {len(symbols)} symbols"
            raise self.wrong("wrong_type", where, text, start)

    def union(self, schema: Any, where: str) -> None:
        start = self.at
        if not 0 <= (index := self.varint(where)) < len(schema):
            raise self.wrong(
                "wrong_type", where, f"union index {index}, there are {len(schema)} branches", start
            )
        self.walk(schema[index], where)

    def blocks(self, where: str, item: Callable[[], None]) -> None:
        while count := self.varint(where):
            size = None
            if count < 0:
                count, size = -count, self.varint(where)
            start, left = self.at, len(self.data) - self.at
            if count > left:
                raise self.wrong("truncated", where, f"{count} items are announced, {left} bytes are left")
            for _ in range(count):
                item()
            if size is not None and size != self.at - start:
                text = f"a block says that it has {size} bytes, its items have {self.at - start}"
                raise self.wrong("wrong_type", where, text, start)

    def array(self, schema: Any, where: str) -> None:
        self.blocks(where, lambda: self.walk(schema["items"], f"{where}[]"))

    def map(self, schema: Any, where: str) -> None:
        def entry() -> None:
            self.string("string", f"{where} key")
            self.walk(schema["values"], f"{where}{{}}")

        self.blocks(where, entry)

    def record(self, schema: Any, where: str) -> None:
        for field in schema["fields"]:
            name = field["name"]
            self.walk(field["type"], f"{where}.{name}" if where else name)


_STEPS: dict[str, Callable[[_Walk, Any, str], object]] = {
    "null": lambda walk, schema, where: None,
    "boolean": _Walk.boolean,
    "int": _Walk.int,
    "long": lambda walk, schema, where: walk.varint(where),
    "float": lambda walk, schema, where: walk.take(4, where, "a float"),
    "double": lambda walk, schema, where: walk.take(8, where, "a double"),
    "bytes": lambda walk, schema, where: walk.sized(where, "bytes"),
    "string": _Walk.string,
    "fixed": lambda walk, schema, where: walk.take(schema["size"], where, "a fixed"),
    "enum": _Walk.enum,
    "array": _Walk.array,
    "map": _Walk.map,
    "union": _Walk.union,
    "record": _Walk.record,
    "error": _Walk.record,
}
