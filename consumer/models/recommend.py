"""The recommender: what a customer buys again, and what is new to them, from their history.

Input of one customer: the types that they bought (places in the vocabulary, last bought first) and FEATURES numbers
about each. An encoder pools the types' embeddings, gated by how often and how lately each was bought, into one vector
for the customer. A small network scores the customer's own types with it. Types that are new are scored all at once,
in one matrix product: [bought or not, customer] x [item-to-item weights (EASE); item vectors].
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import load_file
from torch import Tensor, nn

from consumer.purchases import FEATURES

__all__ = ["DIM", "NEVER", "WEIGHTS", "Customers", "Loaded", "Recommender", "load_recommend", "pack"]

DIM = 64
TASTE = 16
"""Width of what the network for own types knows of a type, and of the customer."""
BECAUSE = 0.05
"""Smallest weight of one type for another, in log-odds, that is given as a reason."""
WEIGHTS = Path(__file__).parent / "weights" / "recommend"
NEVER = -1e9


@dataclass(frozen=True, slots=True)
class Customers:
    """What is computed of a batch's histories once."""

    slots: Tensor
    """(batch, length), padded with the number of types."""
    features: Tensor
    """(batch, length, FEATURES), standardised."""
    vector: Tensor
    """(batch, DIM)."""


class Recommender(nn.Module):
    """Scores as log-odds of being bought within the next 30 days."""

    def __init__(self, types: int) -> None:
        super().__init__()
        self.types = types
        self.shift, self.scale = nn.Buffer(torch.zeros(FEATURES)), nn.Buffer(torch.ones(FEATURES))
        self.item, self.taste = nn.Embedding(types + 1, DIM), nn.Embedding(types + 1, TASTE)
        self.liking = nn.Embedding(types + 1, 1)
        self.gate, self.view = nn.Linear(FEATURES, 1), nn.Linear(DIM, TASTE)
        self.norm, self.up, self.down = nn.LayerNorm(DIM), nn.Linear(DIM, 2 * DIM), nn.Linear(2 * DIM, DIM)
        self.again_up, self.again_down = nn.Linear(FEATURES + 2 * TASTE, 64), nn.Linear(64, 1)
        self.table = nn.Buffer(torch.zeros(types + DIM, types))
        """Item-to-item weights, and below them the item vectors."""
        self.bias = nn.Buffer(torch.zeros(types))
        self.popular = nn.Buffer(torch.zeros(types))
        """Log-odds of being bought by any household: the answer for a customer of whom nothing is known."""

    def customers(self, slots: Tensor, features: Tensor, dropout: float = 0.0) -> Customers:
        """slots (batch, length) padded with `types`, raw features (batch, length, FEATURES)."""
        features = (features - self.shift) / self.scale
        real = (slots != self.types).unsqueeze(-1)
        gates = torch.sigmoid(self.gate(features)) * real
        pooled = (F.dropout(self.item(slots), dropout) * gates).sum(1) / gates.sum(1).clamp(min=1e-3).sqrt()
        hidden = F.dropout(F.gelu(self.up(self.norm(pooled))), dropout)
        return Customers(slots, features, pooled + self.down(hidden))

    def again(self, whom: Customers) -> Tensor:
        """Log-odds of each own type (batch, length); NEVER where padded."""
        view = self.view(whom.vector).unsqueeze(1).expand(-1, whom.slots.shape[1], -1)
        known = torch.cat([whom.features, self.taste(whom.slots), view], -1)
        odds = self.again_down(F.gelu(self.again_up(known))) + self.liking(whom.slots)
        masked: Tensor = odds.squeeze(-1).masked_fill(whom.slots == self.types, NEVER)
        return masked

    def every(self, whom: Customers) -> Tensor:
        """Log-odds of every type (batch, types), as if none had been bought before."""
        bought = self.bought(whom.slots)
        odds = torch.cat([bought.float(), whom.vector], 1) @ self.table + self.bias
        return torch.where(bought.any(1, keepdim=True), odds, self.popular)

    def bought(self, slots: Tensor) -> Tensor:
        """Which types are in the history: bool (batch, types)."""
        marks = torch.zeros(len(slots), self.types + 1, dtype=torch.bool, device=slots.device)
        return marks.scatter_(1, slots, True)[:, : self.types]

    def forward(self, slots: Tensor, features: Tensor, barred: Tensor, k: int) -> Tensor:
        """The best of both kinds: (batch, k, 5).

        barred: bool (batch, types), types that must not be recommended.  Columns: place in the history and
        probability of what to buy again; type and probability of something new, and the place in the history that
        speaks for it most (-1: none does).  Probability 0: there are not so many.
        """
        with torch.autocast(slots.device.type, enabled=False):
            whom = self.customers(slots, features.float())
            own = self.again(whom).masked_fill(F.pad(barred, (0, 1), value=True).gather(1, slots), NEVER)
            own = F.pad(own, (0, max(0, k - own.shape[1])), value=NEVER)
            again, places = own.topk(k, 1)
            fresh, types = self.every(whom).masked_fill(barred | self.bought(slots), NEVER).topk(k, 1)
            because = self._because(slots, types)
            columns = [places, again.sigmoid(), types, fresh.sigmoid(), because]
            return torch.stack([column.float() for column in columns], 2)

    def _because(self, slots: Tensor, types: Tensor) -> Tensor:
        """Place in the history (batch, k) with the largest weight for each of `types` (batch, k)."""
        weights = self.table[slots.unsqueeze(2), types.unsqueeze(1)]
        weights = weights.masked_fill((slots == self.types).unsqueeze(2), NEVER)
        most, place = weights.max(1)
        return torch.where(most > BECAUSE, place, -1)


@dataclass(frozen=True, slots=True)
class Loaded:
    model: Recommender
    slots: dict[str, int]
    """Type -> its place."""
    categories: dict[str, int]
    """Category -> place of the type that stands for types of it that the model has never seen."""
    version: str


def pack(model: Recommender) -> dict[str, Tensor]:
    """What is written of a model: item-to-item weights in bytes with a scale for each column, the rest in fp16."""
    state = model.state_dict()
    weights, vectors = state.pop("table").split([model.types, DIM])
    unit = (weights.abs().amax(0) / 127).clamp(min=1e-6)
    exact = ("shift", "scale")
    packed = {name: part if name in exact else part.half() for name, part in state.items()}
    packed |= {"weights": (weights / unit).round().to(torch.int8), "unit": unit, "vectors": vectors.half()}
    return {name: part.contiguous() for name, part in packed.items()}


def load_recommend(folder: Path = WEIGHTS) -> Loaded:
    """The shipped model on the CPU, fp32, eval mode."""
    given = {name: part.float() for name, part in load_file(folder / "model.safetensors").items()}
    card = json.loads((folder / "card.json").read_text())
    words = json.loads((folder / "vocabulary.json").read_text())
    given["table"] = torch.cat([given.pop("weights") * given.pop("unit"), given.pop("vectors")])
    # equal shares would be ranked by chance, and otherwise in a batch than alone
    given["popular"] -= 1e-6 * torch.arange(len(words["types"]))
    model = Recommender(len(words["types"]))
    model.load_state_dict(given)
    slots = {name: slot for slot, name in enumerate(words["types"])}
    return Loaded(model.requires_grad_(False).eval(), slots, words["categories"], str(card["version"]))
