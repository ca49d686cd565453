"""A task whose model is a torch module: three functions to write, and copies that overlap with computing.

On CUDA a batch is collated into pinned host memory and copied on a stream of its own while the batch before it runs;
the forward pass runs under autocast in the device's precision.  The precision is checked on the example against fp32
before the worker joins its group and given up when it changes the outputs by more than `tolerance`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from consumer.task import Device, Task

__all__ = ["TorchTask"]

log = logging.getLogger(__name__)
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True)
class _Staged:
    tensors: Mapping[str, torch.Tensor]
    copied: Any  # torch.cuda.Event, or None where copying is synchronous
    items: Sequence[Any]


@dataclass(frozen=True, slots=True)
class _Computed:
    outputs: torch.Tensor
    items: Sequence[Any]


class TorchTask(Task):
    """Write `build`, `collate`, `forward` and `split` (or `read`); the rest is inherited."""

    on_device: ClassVar[bool] = True
    tolerance: ClassVar[float] = 0.02
    """Largest absolute difference of `forward` outputs on the example between the chosen precision and fp32."""

    def build(self, device: torch.device) -> None:
        """Make the model on `device`, in eval mode."""
        raise NotImplementedError

    def collate(self, items: Sequence[Any]) -> Mapping[str, torch.Tensor]:
        """Item values -> CPU tensors, first axis the batch, padded to the longest."""
        raise NotImplementedError

    def forward(self, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Tensors on the device -> one tensor, first axis the batch."""
        raise NotImplementedError

    def split(self, outputs: torch.Tensor) -> Sequence[Any]:
        """fp32 outputs on the CPU -> one output an item."""
        return list(outputs.tolist())

    def read(self, outputs: torch.Tensor, items: Sequence[Any]) -> Sequence[Any]:
        """The same where it takes the item values too: an item that has several rows, or goes into its own output."""
        return self.split(outputs)

    def load(self, device: Device) -> None:
        self._device = torch.device(device.name)
        self._dtype = _DTYPES.get(device.precision)
        self._copies: torch.cuda.Stream | None = None
        if self._device.type == "cuda":
            self._copies = torch.cuda.Stream(self._device)
        self.build(self._device)
        self._check_precision()

    @torch.inference_mode()
    def stage(self, items: Sequence[Any]) -> _Staged:
        tensors = self.collate(items)
        if self._copies is None:
            return _Staged({k: t.to(self._device) for k, t in tensors.items()}, None, items)
        with torch.cuda.stream(self._copies):
            there = {k: t.pin_memory().to(self._device, non_blocking=True) for k, t in tensors.items()}
            copied = torch.cuda.Event()
            copied.record(self._copies)
        return _Staged(there, copied, items)

    @torch.inference_mode()
    def compute(self, staged: _Staged) -> _Computed:
        if staged.copied is not None:
            here = torch.cuda.current_stream(self._device)
            here.wait_event(staged.copied)
            for tensor in staged.tensors.values():
                tensor.record_stream(here)  # or the allocator hands its memory out again while we read it
        with self._autocast():
            return _Computed(self.forward(staged.tensors), staged.items)

    @torch.inference_mode()
    def fetch(self, computed: _Computed) -> Sequence[Any]:
        return self.read(computed.outputs.float().cpu(), computed.items)

    def run(self, items: Sequence[Any]) -> Sequence[Any]:
        return self.fetch(self.compute(self.stage(items)))

    def _autocast(self) -> AbstractContextManager[Any]:
        if self._dtype is None:
            return nullcontext()
        return torch.autocast(self._device.type, dtype=self._dtype)

    def _check_precision(self) -> None:
        """Give the fast precision up where it changes the outputs for the example too much, or does not work at all."""
        if self._dtype is None:
            return
        made = self.prepare([self.example], [None])[0]
        if isinstance(made, Exception):
            raise made
        chosen, self._dtype = self._dtype, None
        exact = self.compute(self.stage([made.value])).outputs.float()
        self._dtype = chosen
        try:
            fast = self.compute(self.stage([made.value])).outputs.float()
        except RuntimeError as error:  # an operation that this precision does not know
            why = f"does not work: {error}"
        else:
            worst = float((fast - exact).abs().max())
            if worst <= self.tolerance:
                return
            why = f"changes its outputs by {worst:.3g} (tolerance {self.tolerance})"
        self._dtype = None
        log.warning("task %s runs in fp32: %s %s", self.name, chosen, why)
