"""Tasks that stand in for a model: cheap, of uneven cost, with failures on demand, and watched from outside.

The subject of a mail decides: `reject` is refused by `prepare`, `explode` makes `run` raise, all others are fine.
"""

from __future__ import annotations

import os
import random
import time
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from consumer.records import Event
from consumer.task import Budget, Item, Rejected, Task

__all__ = ["CheapTask", "FirstStage", "GatedTask", "SecondStage"]


class CheapTask(Task):
    """An e-mail's checksum, after a delay of up to `max_delay_ms` a batch.

    `run_log` is a file that gets a line `pid id` for every event of every batch when it begins to run.
    """

    name = "cheap"
    events = ("email",)
    result = "spam_verdict"
    fields: ClassVar[tuple[str, ...] | None] = ("id", "subject", "body")
    budget = Budget(max_batch_items=256, max_batch_tokens=16_384, max_batch_age_ms=5)
    example = {
        "id": "example",
        "received_at": 0,
        "subject": "good",
        "body": "some text",
        "to": [],
        "headers": {},
    }

    def __init__(self, max_delay_ms: float = 0, run_log: str = "") -> None:
        self._max_delay_s = float(max_delay_ms) / 1000
        self._run_log = run_log

    def prepare(self, events: Sequence[Event], recalled: Sequence[Any]) -> list[Item | Rejected]:
        return [
            Rejected("unwanted", "the subject says so")
            if event["subject"] == "reject"
            else Item(event, tokens=1 + len(event["body"]) // 8)
            for event in events
        ]

    def run(self, items: Sequence[Event]) -> list[Event]:
        self._note(items)
        if any(event["subject"] == "explode" for event in items):
            raise RuntimeError("the subject says so")
        self._delay()
        return [self._answer(event) for event in items]

    def _delay(self) -> None:
        time.sleep(random.uniform(0, self._max_delay_s))

    def _answer(self, event: Event) -> Event:
        return _verdict(zlib.crc32(event["body"].encode()) % 1024)

    def _note(self, items: Sequence[Event]) -> None:
        if not self._run_log:
            return
        lines = "".join(f"{os.getpid()} {event['id']}\n" for event in items)
        with open(self._run_log, "ab", buffering=0) as log:
            log.write(lines.encode())


class FirstStage(CheapTask):
    """Writes the checksum for another worker group to read."""

    name = "first"
    result = "checked_mail"

    def _answer(self, event: Event) -> Event:
        return {"id": event["id"], "checksum": zlib.crc32(event["body"].encode()) % 1024}


class SecondStage(CheapTask):
    """Reads what the first stage wrote."""

    name = "second"
    events = ("checked_mail",)
    fields = ("id", "checksum")
    example = {"id": "example", "checksum": 1}

    def prepare(self, events: Sequence[Event], recalled: Sequence[Any]) -> list[Item | Rejected]:
        return [Item({**event, "subject": ""}, tokens=1 + event["checksum"] % 50) for event in events]

    def _answer(self, event: Event) -> Event:
        return _verdict(event["checksum"])


class GatedTask(CheapTask):
    """Every batch takes `run_s`, and none ends before the file `gate` exists."""

    name = "gated"

    def __init__(self, gate: str = "", run_s: float = 0, run_log: str = "") -> None:
        super().__init__(run_log=run_log)
        self._gate = Path(gate) if gate else None
        self._run_s = float(run_s)

    def prepare(self, events: Sequence[Event], recalled: Sequence[Any]) -> list[Item | Rejected]:
        """All of the same cost, so that a chunk is one batch."""
        made = super().prepare(events, recalled)
        return [replace(item, tokens=1) if isinstance(item, Item) else item for item in made]

    def _note(self, items: Sequence[Event]) -> None:
        if items[0]["id"] != self.example["id"]:
            super()._note(items)

    def run(self, items: Sequence[Event]) -> list[Event]:
        results = super().run(items)
        if items[0]["id"] == self.example["id"]:
            return results  # the warm-up
        time.sleep(self._run_s)
        while self._gate is not None and not self._gate.exists():
            time.sleep(0.01)
        return results


def _verdict(checksum: int) -> Event:
    probability = checksum / 1024  # exact in a float
    return {"label": "spam" if probability >= 0.5 else "ham", "probability": probability, "threshold": 0.5}
