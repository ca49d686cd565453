"""Record values that no consumer can process, for the demo: each must end as one dead letter."""

from __future__ import annotations

import random
from collections.abc import Iterator

__all__ = ["KINDS", "broken_records"]

KINDS = ("garbage", "truncated", "trailing_bytes", "unknown_schema", "empty", "null")


def broken_records(good: bytes, seed: int = 0) -> Iterator[tuple[str, bytes | None]]:
    """For ever (kind, value), all kinds in turn; `good` is an encoded record in either framing, at least 16 bytes."""
    chance = random.Random(seed)
    single_object = good.startswith(b"\xc3\x01")
    header_bytes = 10 if single_object else 5
    while True:
        yield "garbage", b"\xff" + chance.randbytes(chance.randint(8, 200))
        yield "truncated", good[: chance.randint(header_bytes, len(good) - 1)]
        yield "trailing_bytes", good + chance.randbytes(chance.randint(1, 20))
        foreign = b"\xc3\x01" + chance.randbytes(8) if single_object else b"\0\x7f" + chance.randbytes(3)
        yield "unknown_schema", foreign + good[header_bytes:]
        yield "empty", b""
        yield "null", None
