"""The discount model: logistic regression on standardised features; a contribution to the log-odds for each.

In double precision, so that the same customer gets the same decision whatever stands beside it in the batch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

__all__ = ["CLIP", "WEIGHTS", "DiscountModel", "Loaded", "load_discount"]

WEIGHTS = Path(__file__).parent / "weights" / "discount"
CLIP = 8.0
"""Standard deviations from the mean of the training data beyond which a feature says no more."""


class DiscountModel(nn.Module):
    """Features (batch, n) to contributions (batch, n); their sum and `bias` are the log-odds."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.shift = nn.Buffer(torch.zeros(count, dtype=torch.float64))
        self.scale = nn.Buffer(torch.ones(count, dtype=torch.float64))
        self.weight = nn.Parameter(torch.zeros(count, dtype=torch.float64))
        self.bias = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def standard(self, features: Tensor) -> Tensor:
        """(batch, n) in standard deviations from the mean of the training data."""
        return ((features - self.shift) * self.scale).clamp(-CLIP, CLIP)

    def forward(self, features: Tensor) -> Tensor:
        return self.standard(features) * self.weight

    def odds(self, features: Tensor) -> Tensor:
        """(batch, n) -> log-odds (batch,)."""
        odds: Tensor = self(features).sum(1) + self.bias
        return odds


@dataclass(frozen=True, slots=True)
class Loaded:
    model: DiscountModel
    features: tuple[str, ...]
    version: str


def load_discount(folder: Path = WEIGHTS) -> Loaded:
    """The shipped model on the CPU, in eval mode."""
    card = json.loads((folder / "card.json").read_text())
    model = DiscountModel(len(card["features"]))
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return Loaded(model.requires_grad_(False).eval(), tuple(card["features"]), str(card["version"]))
