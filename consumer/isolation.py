"""One way to fail a batch: split it in two and try the halves, until what fails stands alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from consumer.errors import BadRecord, Fatal, Retry

__all__ = ["isolate", "kind_of"]

_BROKEN = ("CUDA error", "device-side assert", "CUBLAS_STATUS", "CUDNN_STATUS", "an illegal memory access")


def kind_of(error: BaseException) -> Literal["memory", "broken", "item"]:
    """Sort what a model raised: no memory for so many, a device that is gone, or the fault of an item."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "memory"
    if type(error).__name__ == "AcceleratorError" or any(sign in str(error) for sign in _BROKEN):
        return "broken"
    return "item"


def isolate(
    call: Callable[[Sequence[Any]], Sequence[Any]],
    items: Sequence[Any],
    *,
    stage: str,
    on_memory: Callable[[], None] = lambda: None,
) -> list[Any]:
    """`call(items)`, with a `BadRecord` in the place of every item that fails alone; length and order are kept.

    Raises Fatal when the device is broken, and lets Retry and Fatal of the task itself through.
    """
    try:
        outputs = list(call(items))
        if len(outputs) != len(items):
            raise ValueError(f"{stage} returned {len(outputs)} outputs for {len(items)} items")
        return outputs
    except (Retry, Fatal):
        raise
    except BadRecord as error:
        failure = error
        failure.stage = failure.stage or stage
    except Exception as error:
        kind = kind_of(error)
        if kind == "broken":
            raise Fatal(
                f"the device failed in {stage}: {error}. Its state is lost; restart the worker (a supervisor does)"
            ) from error
        if kind == "memory":
            on_memory()
        reason = "out_of_memory" if kind == "memory" else f"{stage}_failed"
        failure = BadRecord(reason, f"{type(error).__name__}: {error}", stage=stage)
        failure.__cause__ = error
    if len(items) == 1:
        return [failure]
    half = len(items) // 2
    return [
        output
        for part in (items[:half], items[half:])
        for output in isolate(call, part, stage=stage, on_memory=on_memory)
    ]
