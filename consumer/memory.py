"""Keyed state through its life: restored when a partition comes, asked before an event is prepared, dropped when the
partition goes.  Loop thread only.

    assigned ─► [restoring: the partition is shut] ─► open ─► recall / finish ─► revoked, lost: dropped
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from consumer.changelog import Changelog
from consumer.errors import BadRecord, Fatal, Retry
from consumer.isolation import described, report
from consumer.records import Change, Chunk, Epochs, Event, TopicPartition
from consumer.state import Store
from consumer.task import Task

__all__ = ["Memory"]


class Memory:
    """What a stateful task remembers.  `open_up` lets a partition be read whose state is complete."""

    def __init__(
        self, task: Task, store: Store, changelog: Changelog, open_up: Callable[[TopicPartition], None]
    ) -> None:
        self._task = task
        self._recalls = type(task).recall is not Task.recall
        self._store = store
        self._changelog = changelog
        self._open_up = open_up
        self._epochs: Epochs = {}

    @property
    def restoring(self) -> bool:
        """Whether partitions wait for their state."""
        return self._changelog.busy

    def check(self) -> None:
        """Raises Fatal where a changelog does not fit the topic that is read."""
        self._changelog.check()

    def follow(self, epochs: Epochs) -> None:
        """After a rebalance: forget what went, restore what came."""
        for partition, epoch in self._epochs.items():
            if epochs.get(partition) != epoch:
                self._changelog.cancel(partition)
                self._store.drop(partition)
        for partition, epoch in epochs.items():
            if self._epochs.get(partition) != epoch:
                self._store.open(partition, epoch)
                self._changelog.begin(partition)
        self._epochs = dict(epochs)

    def restore(self, patience_s: float) -> None:
        """Go on restoring, for about `patience_s`."""
        for partition in self._changelog.step(patience_s):
            self._open_up(partition)

    def recall(self, chunk: Chunk, events: list[Event | BadRecord]) -> tuple[list[Any] | None, list[Change]]:
        """What the task recalls for each event, and how that changed its state.

        An event that fails here becomes its BadRecord in `events`.
        """
        if not self._recalls:
            return None, []
        recalled: list[Any] = [None] * len(events)
        for place, (event, record) in enumerate(zip(events, chunk.records, strict=True)):
            partition = (record.topic(), record.partition())
            if isinstance(event, BadRecord) or not self._store.holds(partition, chunk.epochs[partition]):
                continue
            try:
                recalled[place] = self._store.use("recall", record, self._call(event))
            except (Retry, Fatal):
                raise
            except BadRecord as error:
                error.stage = error.stage or "recall"
                events[place] = error
            except Exception as error:
                report("recall", error)
                events[place] = BadRecord("recall_failed", described(error), stage="recall")
        return recalled, self._store.take()

    def close(self) -> None:
        self._changelog.close()

    def _call(self, event: Event) -> Callable[[Any], Any]:
        return lambda state: self._task.recall(event, state)
