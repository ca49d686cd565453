"""One failing item costs its neighbours nothing, whatever it raises; a lost device ends the process."""

from __future__ import annotations

import gc
import re
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.errors import BadRecord, Fatal, Retry
from consumer.isolation import as_item, described, isolate, kind_of
from consumer.task import Item


class OutOfMemoryError(RuntimeError):
    """As torch names it."""


class AcceleratorError(RuntimeError):
    """As torch names it."""


def poisoned_by(poison: set[int], error: Callable[[], Exception]) -> Callable[[Sequence[Any]], list[int]]:
    def double(items: Sequence[Any]) -> list[int]:
        if poison & set(items):
            raise error()
        return [2 * item for item in items]

    return double


@given(count=st.integers(1, 40), poison=st.sets(st.integers(0, 39)))
def test_exactly_the_poison_is_rejected_and_order_is_kept(count: int, poison: set[int]) -> None:
    items = list(range(count))
    outputs = isolate(poisoned_by(poison, lambda: ValueError("bad")), items, stage="run")
    assert len(outputs) == count
    for item, output in zip(items, outputs, strict=True):
        if item in poison:
            assert isinstance(output, BadRecord)
            assert (output.reason, output.stage) == ("run_failed", "run")
            assert re.fullmatch(r"ValueError: bad \(at .*test_isolation\.py:\d+\)", output.detail)
        else:
            assert output == 2 * item


def test_one_poison_costs_a_logarithm_of_calls() -> None:
    calls: list[int] = []

    def run(items: Sequence[Any]) -> Sequence[Any]:
        calls.append(len(items))
        return poisoned_by({700}, lambda: ValueError())(items)

    isolate(run, range(1024), stage="run")
    assert len(calls) == 1 + 2 * 10


def test_no_items_are_no_trouble() -> None:
    assert isolate(lambda items: [], [], stage="run") == []


@pytest.mark.parametrize("wrong", [-1, 1])
def test_a_wrong_number_of_outputs_is_a_failure_of_whoever_causes_it(wrong: int) -> None:
    def run(items: Sequence[Any]) -> list[Any]:
        return list(items) if 5 not in items else [0] * (len(items) + wrong)

    outputs = isolate(run, range(8), stage="run")
    (bad,) = [output for output in outputs if isinstance(output, BadRecord)]
    assert outputs.index(bad) == 5
    assert bad.reason == "run_failed"
    assert bad.detail == f"run returned {1 + wrong} outputs for 1 items"


def test_no_outputs_at_all_are_a_failure_of_each() -> None:
    def run(items: Sequence[Any]) -> Any:
        return None

    outputs = isolate(run, range(3), stage="run")
    assert [output.reason for output in outputs] == ["run_failed"] * 3


def test_a_bad_record_keeps_its_reason_and_its_stage_if_it_has_one() -> None:
    for given_stage, expected in (("", "prepare"), ("decode", "decode")):
        call = poisoned_by({2}, lambda s=given_stage: BadRecord("no_text", "nothing to read", stage=s))  # type: ignore[misc]
        bad = isolate(call, range(4), stage="prepare")[2]
        assert (bad.reason, bad.detail, bad.stage) == ("no_text", "nothing to read", expected)


@pytest.mark.parametrize("error", [Retry("away"), Fatal("over", exit_code=7)])
def test_retry_and_fatal_of_a_task_pass(error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        isolate(poisoned_by({0}, lambda: error), range(4), stage="run")
    assert caught.value is error


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("MPS backend out of memory (MPS allocated: 9.00 GB)"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory"
        ),
    ],
)
def test_no_memory_for_many_is_no_fault_of_the_items(error: Exception) -> None:
    told: list[int] = []

    def run(items: Sequence[Any]) -> Sequence[Any]:
        if len(items) > 2:
            raise error
        return items

    assert isolate(run, range(8), stage="run", on_memory=lambda: told.append(1)) == list(range(8))
    assert len(told) == 3


def test_an_item_that_needs_too_much_memory_alone_is_rejected_for_that() -> None:
    bad = isolate(poisoned_by({1}, lambda: OutOfMemoryError("no")), range(2), stage="run")[1]
    assert (bad.reason, bad.stage) == ("out_of_memory", "run")


def test_what_a_failed_call_held_is_free_before_the_halves_are_tried() -> None:
    """A model that runs out of memory halfway leaves activations in its frames; the halves need that memory."""

    class Activation:
        pass

    alive: weakref.WeakSet[Activation] = weakref.WeakSet()

    def run(items: Sequence[Any]) -> Sequence[Any]:
        assert not alive, "the failed call still holds its memory"
        activation = Activation()
        alive.add(activation)
        if len(items) > 1:
            raise MemoryError
        return items

    gc.collect()
    assert isolate(run, range(8), stage="run") == list(range(8))


BROKEN = [
    AcceleratorError(
        "CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously reported"
    ),
    AcceleratorError("an accelerator says anything"),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
]


@pytest.mark.parametrize("error", BROKEN)
def test_a_broken_device_is_fatal_and_nothing_more_is_tried_on_it(error: Exception) -> None:
    calls: list[int] = []

    def run(items: Sequence[Any]) -> Sequence[Any]:
        calls.append(len(items))
        raise error

    with pytest.raises(Fatal, match=r"the device failed in run: .*start the worker again") as caught:
        isolate(run, range(8), stage="run")
    assert caught.value.__cause__ is error
    assert calls == [8]


@pytest.mark.parametrize("error", BROKEN)
def test_a_device_that_only_refused_a_call_goes_on(error: Exception) -> None:
    outputs = isolate(poisoned_by({3}, lambda: error), range(4), stage="run", device_works=lambda: True)
    assert outputs[:3] == [0, 2, 4]
    assert outputs[3].reason == "run_failed"


@pytest.mark.parametrize(
    "error",
    [
        ValueError("CUDA error: said the subject of an e-mail"),
        KeyError("CUDA out of memory"),
        RuntimeError("cannot read 'CUDA error: device-side assert triggered'"),
        RuntimeError("cannot read 'CUDA out of memory'"),
    ],
)
def test_words_of_a_record_in_an_error_end_no_process(error: Exception) -> None:
    assert kind_of(error) == "item"


def test_errors_of_the_interpreter_are_not_swallowed() -> None:
    def run(items: Sequence[Any]) -> Sequence[Any]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        isolate(run, [1], stage="run")


def test_a_description_is_short_has_one_line_and_can_be_written() -> None:
    text = described(ValueError("\ud800\n\n" + "x" * 5_000))
    assert text.startswith("ValueError: \\ud800 xx")
    assert len(text.encode()) < 1_100


def test_what_prepare_makes_is_checked_against_the_contract() -> None:
    item, rejected = Item("x", 3, 4), BadRecord("no_text")
    assert as_item(item) is item
    assert as_item(rejected) is rejected and rejected.stage == "prepare"
    for wrong, why in (
        ("text", "prepare gave str"),
        (None, "prepare gave NoneType"),
        (ValueError("returned, not raised"), "prepare gave ValueError"),
        (Item("x", tokens=2.5), "Item.tokens is 2.5"),  # type: ignore[arg-type]
        (Item("x", nbytes=-1), "Item.nbytes is -1"),
    ):
        bad = as_item(wrong)
        assert isinstance(bad, BadRecord)
        assert (bad.reason, bad.stage) == ("prepare_failed", "prepare")
        assert bad.detail.startswith(why)


def test_a_failure_is_logged_with_its_place_and_without_its_text(caplog: pytest.LogCaptureFixture) -> None:
    isolate(poisoned_by({0}, lambda: ValueError("dear customer")), [0], stage="prepare")
    (line,) = caplog.records
    assert line.getMessage() == "the task fails in prepare"
    assert "test_isolation.py" in caplog.text and "ValueError" in caplog.text
    assert "dear customer" not in caplog.text
