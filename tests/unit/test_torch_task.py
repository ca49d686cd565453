"""A task with a torch module on the CPU: three steps that agree with one, and a precision that is checked."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pytest
import torch

from consumer.batcher import Batch, Run
from consumer.engine import Done, Engine, Failed, Work
from consumer.errors import BadRecord, Fatal
from consumer.records import Event
from consumer.task import Budget, Device, Item, Rejected
from consumer.torch_task import TorchTask


class Sum(TorchTask):
    """Sums the numbers of each event, in a padded batch; `forward` notes how it was called."""

    name = "sum"
    example: ClassVar[dict[str, Any]] = {"id": "1", "numbers": [1.0, 2.0, 3.0]}

    def __init__(self, tolerance: float = 0.02) -> None:
        self.tolerance_now = tolerance
        self.calls: list[torch.dtype | None] = []

    @property
    def tolerance(self) -> float:  # type: ignore[override]
        return self.tolerance_now

    def build(self, device: torch.device) -> None:
        self.weight = torch.ones(8, 1, device=device)

    def prepare(self, events: Sequence[Event], recalled: Sequence[Any]) -> Sequence[Item | Rejected]:
        return [Item(event["numbers"], len(event["numbers"])) for event in events]

    def collate(self, items: Sequence[Any]) -> Mapping[str, torch.Tensor]:
        return {"numbers": torch.tensor([[*numbers, *[0.0] * (8 - len(numbers))] for numbers in items])}

    def forward(self, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        on = torch.is_autocast_enabled("cpu")
        self.calls.append(torch.get_autocast_dtype("cpu") if on else None)
        assert torch.is_inference_mode_enabled()
        return (tensors["numbers"] @ self.weight).squeeze(1)


class Lossy(Sum):
    """Off by `error` under autocast."""

    def __init__(self, error: float) -> None:
        super().__init__()
        self.error = error

    def forward(self, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        outputs = super().forward(tensors)
        return outputs + self.error if self.calls[-1] is not None else outputs


class Unable(Sum):
    """Has an operation that does not know the fast precision."""

    def forward(self, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        outputs = super().forward(tensors)
        if self.calls[-1] is not None:
            raise RuntimeError("not implemented for 'BFloat16'")
        return outputs


def test_run_and_the_three_steps_agree_and_results_are_plain_floats() -> None:
    task = Sum()
    task.load(Device("cpu", "fp32"))
    items = [[1.0, 2.0], [3.0], [4.0, 5.0, 6.0]]
    outputs = task.run(items)
    assert outputs == task.fetch(task.compute(task.stage(items))) == [3.0, 3.0, 15.0]
    assert all(type(output) is float for output in outputs)


def test_fp32_needs_no_check() -> None:
    task = Sum()
    task.load(Device("cpu", "fp32"))
    assert task.calls == []
    task.run([[1.0]])
    assert task.calls == [None]


def test_a_precision_within_tolerance_is_used() -> None:
    task = Sum()
    task.load(Device("cpu", "bf16"))
    assert sorted(map(str, task.calls)) == ["None", "torch.bfloat16"]
    assert task.run([[1.0, 2.0]]) == [3.0]
    assert task.calls[-1] is torch.bfloat16


@pytest.mark.parametrize("error", [0.5, -0.5, math.nan, math.inf])
def test_a_precision_that_changes_the_outputs_too_much_is_given_up(
    error: float, caplog: pytest.LogCaptureFixture
) -> None:
    task = Lossy(error)
    with caplog.at_level(logging.WARNING):
        task.load(Device("cpu", "bf16"))
    assert task.run([[1.0, 2.0]]) == [3.0]
    assert task.calls[-1] is None
    assert "task sum runs in fp32: torch.bfloat16 changes its outputs by" in caplog.text
    assert "tolerance 0.02" in caplog.text


def test_a_task_may_widen_its_tolerance() -> None:
    task = Lossy(0.5)
    task.tolerance_now = 0.6
    task.load(Device("cpu", "bf16"))
    assert task.run([[1.0, 2.0]]) == [3.5]


def test_a_precision_that_an_operation_does_not_know_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    task = Unable()
    with caplog.at_level(logging.WARNING):
        task.load(Device("cpu", "bf16"))
    assert task.run([[1.0, 2.0]]) == [3.0]
    assert "not implemented for 'BFloat16'" in caplog.text


def test_an_example_that_is_rejected_stops_the_load() -> None:
    class Rejecting(Sum):
        def prepare(self, events: Sequence[Event], recalled: Sequence[Any]) -> Sequence[Item | Rejected]:
            return [BadRecord("no_numbers")] * len(events)

    with pytest.raises(BadRecord, match="no_numbers"):
        Rejecting().load(Device("cpu", "bf16"))


def test_a_model_that_fails_in_fp32_too_does_not_load() -> None:
    class Broken(Sum):
        def forward(self, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
            raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        Broken().load(Device("cpu", "bf16"))


def test_batch_size_and_neighbours_do_not_change_an_output() -> None:
    task = Sum()
    task.load(Device("cpu", "fp32"))
    items = [[float(i), 0.5 * i] for i in range(20)]
    together = task.run(items)
    assert together == pytest.approx([task.run([item])[0] for item in items], abs=1e-5)


def test_the_engine_runs_it_and_isolates_a_poison_item() -> None:
    answers: list[Done | Failed] = []
    engine = Engine(Sum(), lambda: Device("cpu", "fp32"), Budget(max_batch_items=4), answers.append)
    engine.start()
    values: list[Any] = [[1.0], ["poison"], [3.0]]
    run = Run(1, 0, 3, 1, 0, 0)
    engine.submit(Work(Batch(1, (run,), 3, 1, 3, "items", 0), values))
    engine.stop(30)
    (answer,) = answers
    assert isinstance(answer, Done)
    assert (answer.outputs[0], answer.outputs[2]) == (1.0, 3.0)
    bad = answer.outputs[1]
    assert isinstance(bad, BadRecord) and bad.reason == "run_failed"


def test_a_device_that_does_not_exist_stops_the_start() -> None:
    engine = Engine(Sum(), lambda: Device("quantum"), Budget(), lambda answer: None)
    with pytest.raises(Fatal, match="task 'sum' does not start"):
        engine.start()
