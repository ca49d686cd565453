"""The benchmark's task: a trivial numpy score, so that everything else is what costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from consumer.records import Event
from consumer.task import Budget, Task

__all__ = ["ClickScores"]


class ClickScores(Task):
    """Scores clicks by the second at which they happened: worthless, but deterministic and cheap."""

    name: ClassVar[str] = "click_scores"
    events: ClassVar[tuple[str, ...]] = ("click",)
    result: ClassVar[str] = "click_score"
    fields: ClassVar[tuple[str, ...] | None] = ("id", "user", "product", "kind", "time")
    version = "1"
    budget: ClassVar[Budget] = Budget(max_batch_items=8192)
    example: ClassVar[Event] = {
        "id": "c-0000000000001",
        "user": "u-00000042",
        "product": "p-0000000000017",
        "kind": "view",
        "time": 1_700_000_000_000,
    }

    def run(self, items: Sequence[Event]) -> Sequence[Any]:
        times = np.fromiter((event["time"] for event in items), dtype=np.float64, count=len(items))
        scores = 1.0 / (1.0 + np.exp(-np.sin(times / 1000.0)))  # [batch]
        return [{"score": score} for score in scores.tolist()]
