"""The device thread: loads the model, runs batches, isolates what fails.  Knows no Kafka.

loop ──Work──► [inbox] ──stage──► compute ──fetch──► Done ──► loop
                  └ the next batch is staged before the outputs of this one are fetched
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from consumer.batcher import Batch
from consumer.errors import BadRecord, ConsumerError, Fatal, missing_package
from consumer.isolation import as_item, described, isolate, kind_of
from consumer.task import Budget, Device, Item, State, Task

__all__ = ["Done", "Engine", "Failed", "Work", "choose_device"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Work:
    """A batch with its item values, for the device."""

    batch: Batch
    values: Sequence[Any]
    begin_trace: Callable[[], AbstractContextManager[Any]] = nullcontext
    """Begins the batch's span; called when the device begins, left when the outputs are there."""


@dataclass(frozen=True, slots=True)
class Done:
    """A batch with its outputs, in the same order; a `BadRecord` stands for an item that failed alone."""

    batch: Batch
    outputs: Sequence[Any]
    begun_ns: int
    ended_ns: int
    out_of_memory: bool = False


@dataclass(frozen=True, slots=True)
class Failed:
    """A thread cannot go on."""

    error: ConsumerError


def choose_device(device: str = "auto", precision: str = "auto", threads: int | None = None) -> Device:
    """Resolve `auto`: the best device that torch sees, and the precision that is fast on it.

    bf16 on CPUs only where AMX or AVX512-BF16 makes it about three times faster; elsewhere it is slower than fp32.
    """
    try:
        import torch
    except ImportError as error:
        raise Fatal(missing_package("torch", "models")) from error
    if threads is not None:
        torch.set_num_threads(threads)
    there: dict[str, Callable[[], bool]] = {
        "cuda": torch.cuda.is_available,
        "mps": torch.backends.mps.is_available,
    }
    if device == "auto":
        device = next((name for name, is_there in there.items() if is_there()), "cpu")
    kind = device.partition(":")[0]
    if kind in there and not there[kind]():
        raise Fatal(
            f"device {device!r} was asked for, but torch sees none: check its driver, or use device=cpu"
        )
    if precision == "auto":
        precision = "fp32"
        if kind == "cuda":
            precision = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
        elif kind == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
            precision = "bf16"
    return Device(device, precision)


def prepared_example(task: Task) -> Item | BadRecord:
    """The task's example as the model gets it, seen as the first of its key."""
    event = dict(task.example)
    recalled = task.recall(event, State())
    return as_item(task.prepare([event], [recalled])[0])


class Engine:
    """Owns the model.  `post` takes `Done` and `Failed` back to the loop; `submit` never blocks."""

    def __init__(
        self, task: Task, choose: Callable[[], Device], budget: Budget, post: Callable[[Done | Failed], None]
    ) -> None:
        self._task = task
        self._choose = choose
        self._budget = budget
        self._post = post
        self._inbox: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._ready = threading.Event()
        self._failure: ConsumerError | None = None
        self._ran_out = False
        self.device = Device()
        self._thread = threading.Thread(target=self._main, name="device", daemon=True)

    def start(self) -> None:
        """Load and warm up; returns when the first batch can run.  Raises Fatal when the model does not."""
        self._thread.start()
        self._ready.wait()
        if self._failure is not None:
            raise self._failure

    def submit(self, work: Work) -> None:
        """Queue a batch.  The caller keeps at most two of them under way: one runs, one is staged."""
        self._inbox.put(work)

    def stop(self, timeout_s: float) -> None:
        """End after what is queued, or leave the thread behind at the deadline."""
        self._inbox.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _main(self) -> None:
        try:
            began = time.monotonic()
            self.device = self._choose()
            self._task.load(self.device)
            self._warm_up()
            log.info(
                "model %s %s is ready on %s (%s) after %.1f s",
                self._task.name,
                self._task.version,
                self.device.name,
                self.device.precision,
                time.monotonic() - began,
            )
        except Fatal as error:
            self._failure = error
            return
        except BaseException as error:  # a SystemExit, too: whoever waits must hear of it
            self._failure = Fatal(
                f"task {self._task.name!r} does not start: loading or warming up its model failed: {described(error)}"
            )
            self._failure.__cause__ = error
            return
        finally:
            self._ready.set()
        try:
            self._run()
        except ConsumerError as error:
            self._post(Failed(error))
        except BaseException as error:
            failure = Fatal(f"the device thread failed: {described(error)}")
            failure.__cause__ = error
            self._post(Failed(failure))

    def _warm_up(self) -> None:
        """Run the example, and the largest batch that the budget allows: what does not fit fails now, not at night.

        A task off the device that names no largest item has no shapes to warm up: its example is enough.
        """
        task, budget = self._task, self._budget
        example = prepared_example(task)
        if isinstance(example, BadRecord):
            raise example
        self._try(example, 1)
        largest = task.largest() or (example if task.on_device else None)
        if largest is None:
            return
        count = budget.max_batch_items
        if budget.max_batch_tokens is not None:
            count = min(count, budget.max_batch_tokens // max(1, largest.tokens))
        if budget.max_batch_bytes is not None:
            count = min(count, budget.max_batch_bytes // max(1, largest.nbytes))
        self._try(largest, max(1, count))

    def _try(self, item: Item, count: int) -> None:
        """Run a batch of `count` times `item`; whatever is wrong with it is raised."""
        try:
            outputs = list(self._call([item.value] * count))
        except Exception as error:
            if kind_of(error) != "memory":
                raise
            raise Fatal(
                f"a batch of {count} items of {item.tokens} tokens, as the budget allows it, does not fit into the "
                f"memory of {self.device.name}: lower max_batch_items, max_batch_tokens or max_batch_bytes"
            ) from error
        if len(outputs) != count:
            raise ValueError(f"run returned {len(outputs)} outputs for {count} items")
        for output in outputs:
            if isinstance(output, BadRecord):
                raise output

    def _run(self) -> None:
        """Stage the next batch while this one computes (on the CPU, where computing is synchronous, after it)."""
        work = self._inbox.get()
        staged = self._stage(work)
        while work is not None:
            flight = self._compute(work, staged)
            early = not self._inbox.empty()  # nobody else takes from it, so what is there stays there
            if early:
                upcoming = self._inbox.get()
                staged = self._stage(upcoming)
            self._land(work, flight)
            if not early:
                upcoming = self._inbox.get()
                staged = self._stage(upcoming)
            work = upcoming

    def _stage(self, work: Work | None) -> Any:
        if work is None:
            return None
        try:
            return self._task.stage(work.values)
        except Exception:
            return None  # `_land` tries once more, when the device has room, and finds out whose fault it is

    def _compute(self, work: Work, staged: Any) -> _Flight:
        begun_ns, trace = time.monotonic_ns(), work.begin_trace()
        try:
            return _Flight(None if staged is None else self._task.compute(staged), begun_ns, trace)
        except Exception:
            return _Flight(None, begun_ns, trace)

    def _land(self, work: Work, flight: _Flight) -> None:
        self._ran_out = False

        def first_time(values: Sequence[Any]) -> Sequence[Any]:
            if flight.computed is not None and len(values) == len(work.values):
                return self._task.fetch(flight.computed)
            return self._call(values)

        with flight.trace:
            outputs = isolate(
                first_time,
                work.values,
                stage="run",
                on_memory=self._out_of_memory,
                device_works=self._device_works,
            )
        self._post(Done(work.batch, outputs, flight.begun_ns, time.monotonic_ns(), self._ran_out))

    def _call(self, values: Sequence[Any]) -> Sequence[Any]:
        task = self._task
        return task.fetch(task.compute(task.stage(values)))

    def _out_of_memory(self) -> None:
        self._ran_out = True

    def _device_works(self) -> bool:
        """Whether a call was merely refused: after a fault the CUDA context answers every call with the same error."""
        if not self.device.name.startswith("cuda"):
            return False
        import torch

        try:
            torch.cuda.synchronize(self.device.name)
        except Exception:
            return False
        return True


@dataclass(frozen=True, slots=True)
class _Flight:
    computed: Any
    """None when staging or computing failed."""
    begun_ns: int
    trace: AbstractContextManager[Any]
