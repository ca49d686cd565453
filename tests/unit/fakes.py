"""Records and chunks without a Kafka."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from consumer.records import Chunk, Headers


@dataclass(frozen=True, slots=True)
class FakeRecord:
    """What the client library would hand out."""

    at: int = 0
    of: tuple[str, int] = ("emails", 3)
    its_key: bytes | None = b"key"
    its_value: bytes | None = b"value"
    its_headers: Headers | None = None
    its_timestamp: tuple[int, int] = (1, 1_700_000_000_123)

    def topic(self) -> str:
        return self.of[0]

    def partition(self) -> int:
        return self.of[1]

    def offset(self) -> int:
        return self.at

    def key(self) -> bytes | None:
        return self.its_key

    def value(self) -> bytes | None:
        return self.its_value

    def headers(self) -> Headers | None:
        return self.its_headers

    def timestamp(self) -> tuple[int, int]:
        return self.its_timestamp


def chunk_of(records: Sequence[FakeRecord], number: int = 1) -> Chunk:
    """A chunk as the source would make it."""
    next_offsets = {(r.topic(), r.partition()): r.offset() + 1 for r in records}
    return Chunk(number, records, next_offsets, dict.fromkeys(next_offsets, 7), 100, 0)
