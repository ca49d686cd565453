"""A task that only remembers: it counts clicks, of each user before and after the model, and of a partition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from consumer.records import Event
from consumer.task import Item, Rejected, State, Task

__all__ = ["CountTask", "LookupTask"]


class CountTask(Task):
    """`grow:N` as product makes the state N bytes larger, `raise:recall` and `raise:finish` fail there."""

    name = "count"
    events = ("click",)
    result = "counted_click"
    stateful = True
    example = {"id": "c", "user": "u", "product": "p", "kind": "view", "time": 0}

    def recall(self, event: Event, state: State) -> int:
        state["clicks"] = state.get("clicks", 0) + 1
        word, _, size = event["product"].partition(":")
        if word == "grow":
            state["ballast"] = "x" * int(size)
        if event["product"] == "raise:recall":
            raise ValueError("asked to fail")
        return int(state["clicks"])

    def prepare(self, events: Sequence[Event], recalled: Sequence[Any]) -> list[Item | Rejected]:
        return [Item(count) for count in recalled]

    def run(self, items: Sequence[Any]) -> Sequence[int]:
        return items

    def finish(self, event: Event, output: int, state: State) -> Event:
        state["clicks"] = state.get("clicks", 0) + 1
        state.partition["clicks"] = state.partition.get("clicks", 0) + 1
        if event["product"] == "raise:finish":
            raise ValueError("asked to fail")
        return {
            "recalled": output,
            "finished": state["clicks"],
            "in_partition": state.partition["clicks"],
        }


class LookupTask(CountTask):
    """Says how many rows its table has and whether the product of the click is among them."""

    name = "lookup"
    stateful = False
    tables = {"shelf": "click"}

    def recall(self, event: Event, state: State) -> int:
        return 0

    def prepare(self, events: Sequence[Event], recalled: Sequence[Any]) -> list[Item | Rejected]:
        return [Item(event) for event in events]

    def run(self, items: Sequence[Any]) -> Sequence[int]:
        return [int(event["product"] in self.table["shelf"]) for event in items]

    def finish(self, event: Event, output: int, state: State) -> Event:
        return {"recalled": output, "finished": len(self.table["shelf"]), "in_partition": 0}
