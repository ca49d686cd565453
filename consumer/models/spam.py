"""The spam model: a fine-tuned MiniLM-L6 on the beginning of a mail and hashed n-grams on more of it, joined.

Input of one mail: int ids `[CLS] subject [SEP] body [SEP]`, at most 512; the encoder sees the first ENCODER_IDS.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from consumer.models.encoder import LAYERS, LINEARS, WIDTH, Encoder, load_minilm
from consumer.models.minilm import PAD, SEP

__all__ = [
    "ENCODER_IDS",
    "FIRST_TUNED",
    "HASH_BITS",
    "WEIGHTS",
    "Loaded",
    "SpamModel",
    "buckets",
    "load_spam",
    "window",
]

ENCODER_IDS = 128
FIRST_TUNED = 3
"""Layers below keep MiniLM's weights; those from here on carry a low-rank change."""
HASH_BITS = 18
WORDLESS_IDS = 3
"""Length of a mail without any word: CLS, SEP, SEP."""
ORDERS = (1, 2, 3)
WEIGHTS = Path(__file__).parent / "weights" / "spam"

_MULTIPLIERS = (0x1E3779B97F4A7C15, 0x3F58476D1CE4E5B9)  # odd; products wrap round in int64, everywhere alike


def buckets(ids: Tensor) -> Tensor:
    """Hash buckets of the uni-, bi- and trigrams of each row, sorted, each once; elsewhere the extra bucket 2**HASH_BITS.

    ids (batch, length) padded with PAD -> int64 (batch, len(ORDERS) * length).
    """
    none = 1 << HASH_BITS
    ids = ids.long()
    found = []
    for order in ORDERS:
        state = torch.zeros_like(ids)
        real = torch.ones_like(ids, dtype=torch.bool)
        for shift in range(order):
            part = torch.full_like(ids, PAD)
            part[:, : max(0, ids.shape[1] - shift)] = ids[:, shift:]
            real &= part != PAD
            state = (state * _MULTIPLIERS[0] + part + order) * _MULTIPLIERS[1]
            state ^= (state >> 29) & 0x7FFFFFFFF
        found.append(torch.where(real, (state >> 23) & (none - 1), none))
    rows = torch.cat(found, 1).sort(1).values
    again = torch.zeros_like(rows, dtype=torch.bool)
    again[:, 1:] = rows[:, 1:] == rows[:, :-1]
    return rows.masked_fill(again, none)


def window(ids: Tensor) -> Tensor:
    """What the encoder sees of ids (batch, length): the first ENCODER_IDS, ended by SEP like every shorter mail."""
    seen = ids[:, :ENCODER_IDS].long()
    if ids.shape[1] >= ENCODER_IDS:
        seen[:, -1] = torch.where(seen[:, -1] != PAD, SEP, PAD)
    return seen


class SpamModel(nn.Module):
    """Token ids to the log-odds of spam, calibrated."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(WIDTH, 1)
        self.grams = nn.Embedding((1 << HASH_BITS) + 1, 1)
        self.join = nn.Linear(2, 1)

    def gram_score(self, ids: Tensor) -> Tensor:
        """ids (batch, length) -> (batch,): weights of the n-grams, over the root of their number."""
        rows = buckets(ids)
        count = (rows != 1 << HASH_BITS).sum(1).clamp(min=1)
        total: Tensor = self.grams(rows).squeeze(-1).float().sum(1) / count.sqrt()
        return total

    def encoder_score(self, ids: Tensor) -> Tensor:
        """ids (batch, length) -> (batch,)."""
        pooled = self.encoder(window(ids))
        with torch.autocast(ids.device.type, enabled=False):
            score: Tensor = self.head(pooled.float()).squeeze(-1)
        return score

    def forward(self, ids: Tensor) -> Tensor:
        """ids (batch, length), padded with PAD -> fp32 log-odds (batch,); 0 for a mail without words."""
        scores = torch.stack([self.encoder_score(ids), self.gram_score(ids)], 1)
        with torch.autocast(ids.device.type, enabled=False):
            odds: Tensor = self.join(scores).squeeze(-1)
        return odds * (ids != PAD).sum(1).gt(WORDLESS_IDS)


@dataclass(frozen=True, slots=True)
class Loaded:
    model: SpamModel
    threshold: float
    version: str


def load_spam(folder: Path = WEIGHTS) -> Loaded:
    """The shipped model on the CPU, fp32, eval mode: MiniLM with its low-rank change merged in."""
    given = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
    card = json.loads((folder / "card.json").read_text())
    encoder = load_minilm()
    for index in range(FIRST_TUNED, LAYERS):
        layer = encoder.layers[index]
        for name in LINEARS:
            change = given[f"{index}.{name}.b"] @ given[f"{index}.{name}.a"]
            linear: nn.Linear = getattr(layer, name)
            linear.weight = nn.Parameter(linear.weight + change, requires_grad=False)
    with torch.device("meta"):
        model = SpamModel(encoder=nn.Identity())  # type: ignore[arg-type]
    grams = torch.cat([given["grams"], torch.zeros(1)]).unsqueeze(1)
    rest = {name: given[name] for name in ("head.weight", "head.bias", "join.weight", "join.bias")}
    model.load_state_dict({**rest, "grams.weight": grams}, assign=True)
    model.encoder = encoder
    return Loaded(model.requires_grad_(False).eval(), float(card["threshold"]), str(card["version"]))
