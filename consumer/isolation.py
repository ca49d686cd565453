"""One way to fail a batch: split it in two and try the halves, until what fails stands alone."""

from __future__ import annotations

import logging
import sysconfig
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from consumer.errors import BadRecord, Fatal, Retry
from consumer.task import Item

__all__ = ["as_item", "described", "isolate", "kind_of", "report"]

log = logging.getLogger(__name__)

_MAX_DETAIL = 1000
_OURS = str(Path(__file__).parent)
_PYTHON = sysconfig.get_path("stdlib")
_PACKAGES = ("site-packages", "dist-packages")
# How torch begins its messages.  Only the beginning counts, and only in a RuntimeError: what comes later, and what
# other errors say, may quote a record, and a record must not be able to end the process.
_NO_MEMORY = (
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED",
    "MPS backend out of memory",
    "[enforce fail at alloc_cpu",
)
_BROKEN = ("CUDA error", "cuDNN error", "HIP error", "Triton Error [CUDA]")


def kind_of(error: BaseException) -> Literal["memory", "broken", "item"]:
    """Sort what a model raised: no memory for so many, a device that may be gone, or the fault of an item."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "memory"
    if isinstance(error, RuntimeError):
        if str(error).startswith(_NO_MEMORY):
            return "memory"
        if type(error).__name__ == "AcceleratorError" or str(error).startswith(_BROKEN):
            return "broken"
    return "item"


def described(error: BaseException) -> str:
    """Type, text and place of an error in one line of at most 1,000 characters, all writable as UTF-8."""
    where = _place(error)
    text = f"{type(error).__name__}: {error}"[: _MAX_DETAIL - len(where)] + where
    return " ".join(text.encode("utf-8", "backslashreplace").decode().split())


def report(stage: str, error: Exception) -> None:
    """Log where a task failed, without what the error says: its text may quote the event."""
    told = Exception(f"{type(error).__name__}; what it says stands in the dead letter")
    # The stage is part of the text, not an argument: each stage is a kind of its own to the rate limit of the logs.
    log.warning(f"the task fails in {stage}", exc_info=(Exception, told, error.__traceback__))


def _place(error: BaseException) -> str:
    """` (at FILE:LINE)` of the innermost frame of the user's code, else of an installed package, else nothing."""
    found = ""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        installed = any(part in Path(frame.filename).parts for part in _PACKAGES)
        if frame.filename.startswith((_OURS, "<")) or (frame.filename.startswith(_PYTHON) and not installed):
            continue
        place = f" (at {_short(frame.filename)}:{frame.lineno})"
        if not installed:
            return place
        found = found or place
    return found


def _short(file: str) -> str:
    """Its path from the current folder, where it lies in there."""
    try:
        return str(Path(file).relative_to(Path.cwd()))
    except (ValueError, OSError):
        return file


def as_item(made: Any) -> Item | BadRecord:
    """What `prepare` put in one place, or a BadRecord that says what the contract asks for."""
    if isinstance(made, Item):
        costs: dict[str, Any] = {"tokens": made.tokens, "nbytes": made.nbytes}
        for name, cost in costs.items():
            if not isinstance(cost, int) or cost < 0:
                return _not_prepared(f"Item.{name} is {cost!r}; it must be an int and not negative")
        return made
    if isinstance(made, BadRecord):
        made.stage = made.stage or "prepare"
        return made
    return _not_prepared(f"prepare gave {type(made).__name__}; it must give an Item or a BadRecord")


def _not_prepared(detail: str) -> BadRecord:
    return BadRecord("prepare_failed", detail[:_MAX_DETAIL], stage="prepare")


def isolate(
    call: Callable[[Sequence[Any]], Sequence[Any]],
    items: Sequence[Any],
    *,
    stage: str,
    on_memory: Callable[[], None] = lambda: None,
    device_works: Callable[[], bool] = lambda: False,
) -> list[Any]:
    """`call(items)`, with a `BadRecord` in the place of every item that fails alone; length and order are kept.

    `on_memory` hears of every lack of memory; `device_works` is asked when an error looks like the end of the device.
    Raises Fatal when it is, and lets Retry and Fatal of the task itself through.
    """
    where = stage
    try:
        outputs = list(call(items))
        if len(outputs) == len(items):
            return outputs
        reason, detail = f"{stage}_failed", f"{stage} returned {len(outputs)} outputs for {len(items)} items"
    except (Retry, Fatal):
        raise
    except BadRecord as error:
        reason, detail, where = error.reason, error.detail, error.stage or stage
    except Exception as error:
        kind = kind_of(error)
        if kind == "broken" and not device_works():
            raise Fatal(
                f"the device failed in {stage}: {described(error)}. Its state is lost; start the worker again, "
                "as a supervisor does"
            ) from error
        if kind == "memory":
            on_memory()
        else:
            report(stage, error)
        reason, detail = "out_of_memory" if kind == "memory" else f"{stage}_failed", described(error)
    # Here the error is forgotten, and with it the frames that hold what the failed call had on the device: the halves
    # need that memory.
    if len(items) == 1:
        return [BadRecord(reason, detail, stage=where)]
    half = len(items) // 2
    return [
        output
        for part in (items[:half], items[half:])
        for output in isolate(call, part, stage=stage, on_memory=on_memory, device_works=device_works)
    ]
