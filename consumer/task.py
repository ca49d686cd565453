"""The contract between the product and a task: one class says what is done to events.

    class Shout(Task):
        name = "shout"
        events = ("email",)
        result = "shouted"
        example = {...}

        def run(self, items):
            return [{"text": event["subject"].upper()} for event in items]

Only `run` must be written.  The product decodes, batches, bisects failing batches, adds the provenance fields to every
result (`event_id`, `source_topic`, `source_partition`, `source_offset`, `model`, `model_version`, `produced_at`) and
publishes exactly once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from consumer.errors import BadRecord
from consumer.records import Event

__all__ = ["Budget", "Device", "Item", "Rejected", "State", "Task"]

Rejected = BadRecord
"""What `prepare` puts (not raises) in the place of an event that it will not process."""


@dataclass(frozen=True, slots=True)
class Item:
    """What one event costs and what the model gets of it.

    `tokens` is its length along the padded axis: a batch costs longest x count.  `nbytes` is what it holds in memory:
    say it where it is much, for the loop prepares no more ahead of the device than `max_prepared_bytes`.
    """

    value: Any
    tokens: int = 1
    nbytes: int = 0


@dataclass(frozen=True, slots=True)
class Budget:
    """Hard limits of one batch; None means no limit.

    A single item over a limit still gets a batch of its own: refusing it is the task's decision, in `prepare`.
    """

    max_batch_items: int = 1024
    max_batch_tokens: int | None = None
    """Padded tokens: the longest item x the number of items."""
    max_batch_bytes: int | None = None
    max_batch_age_ms: float = 0.0
    """How long the oldest item may wait for company while the device has nothing to do."""


@dataclass(frozen=True, slots=True)
class Device:
    """Where a model runs.  `name` is `cpu`, `cuda:0` or `mps`; `precision` is `fp32`, `bf16` or `fp16`."""

    name: str = "cpu"
    precision: str = "fp32"


class State(dict[str, Any]):
    """What a task remembers under a record's key; a dict of what JSON can say, empty in the beginning.

    Change it in place.  The changes of an event are kept when the call returns and forgotten when it raises; they
    become durable in the same transaction as its result.  An empty one takes no room.  `partition` is the same for all
    keys of the record's source partition, which is number `number` of `topic`; so is each `part`.
    """

    __slots__ = ("_load", "number", "partition", "parts", "topic")

    def __init__(
        self,
        values: Mapping[str, Any] | None = None,
        partition: dict[str, Any] | None = None,
        number: int = 0,
        topic: str = "",
        load: Callable[[str], dict[str, Any]] = lambda name: {},
    ) -> None:
        super().__init__(values or {})
        self.partition: dict[str, Any] = {} if partition is None else partition
        self.number = number
        self.topic = topic
        self.parts: dict[str, dict[str, Any]] = {}
        self._load = load

    def part(self, name: str) -> dict[str, Any]:
        """A further dict of the source partition, under a name of the task's own: change it in place.

        For what is too large to be written whole at every event: only parts that changed are.
        """
        if name not in self.parts:
            self.parts[name] = self._load(name)
        return self.parts[name]


class Task:
    """What is done to events.  Methods run on the threads named in their docstrings and need no locks."""

    name: ClassVar[str]
    events: ClassVar[tuple[str, ...]]
    """Names of the event schemas that the task reads; the input topic of `email` is `emails`."""
    result: ClassVar[str]
    """Name of the schema of its results; the output topic of `spam_verdict` is `spam_verdicts`."""
    fields: ClassVar[tuple[str, ...] | None] = None
    """Top-level event fields that the task needs; None reads all.  `id` is always read."""
    on_device: ClassVar[bool] = False
    """Whether the model wants a torch device; without it torch is never imported."""
    example: ClassVar[Event]
    """One event: warm-up input, demonstration and documentation."""
    stateful: ClassVar[bool] = False
    """Whether `recall` and `finish` get to keep state.  A record without a
    key has no state of its own, and becomes a dead letter where the task wants to keep some."""
    tables: ClassVar[Mapping[str, str]] = {}
    """Table name -> name of the schema of its records: compacted topics that every worker holds whole."""
    table: Mapping[str, Mapping[str, Event]]
    """Table name -> record key (UTF-8) -> its latest event.  Filled before the worker joins its group, then kept up to
    date while it runs: take a row once and use that.  Any thread may read it."""
    version: str = "0"
    """Version of the model; stands in every result.  `load` may set it."""
    budget: ClassVar[Budget] = Budget()
    """Batch limits that suit the model; settings override them."""
    prepare_slice: ClassVar[int] = 64
    """How many events `prepare` gets at a time at most: few where they are dear, as pictures are."""

    def load(self, device: Device) -> None:
        """Device thread, once, before the worker joins its group: build the model."""

    def recall(self, event: Event, state: State) -> Any:
        """Loop thread, in poll order, before anything is computed: what `prepare` should know of the past.

        Its state is its own: what `recall` writes only `recall` sees, and the same holds for `finish`, which runs
        later, when other events have been recalled already.
        """
        return None

    def prepare(self, events: Sequence[Event], recalled: Sequence[Any]) -> Sequence[Item | Rejected]:
        """Prepare pool: turn events into items, many at once; same length, same order.

        `recalled[i]` is what `recall` said of `events[i]`.
        Must be free of state and safe on several threads.  Put a `BadRecord` where an event is not acceptable.
        Without an override the event itself is the item.
        """
        return [Item(event) for event in events]

    def run(self, items: Sequence[Any]) -> Sequence[Any]:
        """Device thread: `Item.value`s in, one output each, same length, same order."""
        raise NotImplementedError(f"task {self.name!r} does not say how to run")

    def finish(self, event: Event, output: Any, state: State) -> Event | None:
        """Loop thread, in poll order: the result's own fields, or None for no result.

        Without an override the output is the result and must be a dict of the result schema's own fields.
        """
        result: Event | None = output
        return result

    def largest(self) -> Item | None:
        """The costliest item that `prepare` can return, for warm-up at the real maximum; None: the example's."""
        return None

    # A model on an accelerator overlaps copying with computing by splitting `run` in three; see `TorchTask`.

    def stage(self, items: Sequence[Any]) -> Any:
        """Device thread: start bringing the batch to the device."""
        return items

    def compute(self, staged: Any) -> Any:
        """Device thread: start the computation; may return before it has ended."""
        return self.run(staged)

    def fetch(self, computed: Any) -> Sequence[Any]:
        """Device thread: wait for the outputs and bring them back."""
        outputs: Sequence[Any] = computed
        return outputs
