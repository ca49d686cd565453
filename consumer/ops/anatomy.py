"""A dead letter's value, as far as it can be read, and the rest in hexadecimal."""

from __future__ import annotations

from collections.abc import Iterator

from consumer.codec import Decoder, load_older
from consumer.config import Settings
from consumer.lookup import event_schema, registry_of, schema_folders
from consumer.ops.letters import Letter
from consumer.records import Event
from consumer.tasks import find_task

__all__ = ["hex_lines", "readable_part"]

_WIDTH = 16


def readable_part(settings: Settings, letter: Letter) -> tuple[Event, int]:
    """The leading fields of its event and how many bytes they take; of several kinds of events the one that fits best.

    Raises Retry when the registry is needed and away.
    """
    task = find_task(settings.task)
    folders = schema_folders(settings, task)
    registry = registry_of(settings)
    found = [
        Decoder(event_schema(name, folders), load_older(name, folders), registry=registry).as_far_as_it_goes(
            letter.value or b""
        )
        for name in task.events
    ]
    return max(found, key=lambda each: each[1])


def hex_lines(data: bytes, start: int = 0) -> Iterator[str]:
    """Offset, sixteen bytes and their ASCII characters a line; `start` is the offset of the first byte."""
    for at in range(0, len(data), _WIDTH):
        row = data[at : at + _WIDTH]
        text = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in row)
        yield f"{start + at:08x}  {row.hex(' '):<{3 * _WIDTH - 1}}  {text}"
