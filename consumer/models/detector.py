"""The detector of the task `image`: the shipped NanoDet-g, or any torch program in a file.

A file is what `torch.export.save` (`.pt2`) or `torch.jit.save` (any other ending) wrote of a module with this
interface, for batches of any length: pictures (batch, size, size, 3), uint8 RGB, padded with black at right and bottom
-> floats (batch, places, 4 + classes): left, top, right, bottom as shares of the padded picture, then a score of each
class, 0 to 1.
"""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from consumer.errors import Fatal
from consumer.exits import Exit
from consumer.models.nanodet import LABELS, SIZE, VERSION, load_nanodet

__all__ = ["Loaded", "load_detector"]


@dataclass(frozen=True, slots=True)
class Loaded:
    """A detector, the names of its classes, the side of the pictures that it wants, its version."""

    model: Any
    labels: tuple[str, ...]
    size: int
    version: str


def load_detector(file: str | Path | None, labels: str | Path | None, size: int = SIZE) -> Loaded:
    """NanoDet-g when `file` is None or the folder of its weights, else the program in `file`.

    `labels` is a text file with the name of a class in each line; without it COCO's 80 are meant.  Raises Fatal.
    """
    path = None if file is None else Path(file)
    if path is None or path.is_dir():
        return Loaded(load_nanodet(path), LABELS, SIZE, VERSION)
    try:
        names = LABELS if labels is None else tuple(Path(labels).read_text(encoding="utf-8").split("\n"))
        names = tuple(name.strip() for name in names if name.strip())
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        model = _program(path)
        with torch.inference_mode():
            found = model(torch.zeros(2, size, size, 3, dtype=torch.uint8))
    except Exception as error:
        raise Fatal(f"the detector {path} cannot be used: {error}", exit_code=Exit.USAGE) from error
    if found.ndim != 3 or found.shape[0] != 2 or found.shape[2] != 4 + len(names):
        raise Fatal(
            f"the detector {path} gives {tuple(found.shape)} for two pictures; with {len(names)} labels "
            f"(2, places, {4 + len(names)}) is due",
            exit_code=Exit.USAGE,
        )
    return Loaded(model, names, size, f"{path.stem}-{digest[:8]}")


def _program(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # TorchScript is deprecated, and still what many have
        return (
            torch.export.load(path).module() if path.suffix == ".pt2" else torch.jit.load(path, "cpu").eval()
        )
