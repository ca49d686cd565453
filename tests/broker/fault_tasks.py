"""A task that misbehaves on demand: the `product` of a click says how."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Mapping, Sequence
from typing import Any

from consumer.records import Event
from consumer.task import Budget, Item, Rejected, Task

log = logging.getLogger(__name__)

__all__ = ["FaultyTask", "ScoreTask"]


def _score(event: Event) -> float:
    return len(event["user"]) / 100


class ScoreTask(Task):
    """The trivial task: nothing to prepare, nothing to finish.  `run_ms` is what one batch takes."""

    name = "score"
    events = ("click",)
    result = "click_score"
    example = {"id": "c", "user": "u", "product": "p", "kind": "view", "time": 0}
    budget = Budget(max_batch_items=1024)

    def __init__(self, run_ms: float = 0) -> None:
        self._run_ms = run_ms

    def run(self, items: Sequence[Event]) -> list[Event]:
        time.sleep(self._run_ms / 1000)
        return [self.score(event) for event in items]

    @staticmethod
    def score(event: Event) -> Event:
        word, _, size = event["product"].partition(":")
        if word == "large":  # noise, which does not compress
            return {
                "score": _score(event),
                "model": random.Random(event["id"]).randbytes(int(size) // 2).hex(),
            }
        return {"score": _score(event)}


class FaultyTask(ScoreTask):
    """`raise:run` fails in `run`, `hang:run` never comes back from it, `slow:run` takes 30 ms; so for all methods."""

    name = "faulty"

    def prepare(self, events: Sequence[Event], recalled: Sequence[Any]) -> list[Item | Rejected]:
        for event in events:
            _misbehave(event, "prepare")
        return [Item(event) for event in events]

    def run(self, items: Sequence[Event]) -> list[Event]:
        for event in items:
            _misbehave(event, "run")
        return super().run(items)

    def finish(self, event: Event, output: Any, state: Mapping[str, Any]) -> Event | None:
        _misbehave(event, "finish")
        result: Event = output
        return result


def _misbehave(event: Event, where: str) -> None:
    if event["product"] == f"slow:{where}":
        time.sleep(0.03)
    if event["product"] == f"raise:{where}":
        raise RuntimeError(f"{where} does not like {event['id']}")
    while event["product"] == f"hang:{where}":
        log.warning("%s hangs on %s", where, event["id"])
        time.sleep(60)
