"""MiniLM-L6 as a small module of our own: the weights come from a package, nothing else does.

Written out because importing `transformers` costs seconds at every start; the architecture is BERT's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from safetensors import safe_open
from torch import Tensor, nn

from consumer.models.minilm import PAD, minilm_folder

__all__ = ["LAYERS", "WIDTH", "Encoder", "load_minilm", "mean"]

VOCABULARY, POSITIONS, WIDTH, INNER, HEADS, LAYERS = 30_522, 512, 384, 1_536, 12, 6

_LINEARS = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "out": "attention.output.dense",
    "up": "intermediate.dense",
    "down": "output.dense",
}
_NORMS = {"norm1": "attention.output.LayerNorm", "norm2": "output.LayerNorm"}
_EMBEDDINGS = {
    "words": "word_embeddings",
    "positions": "position_embeddings",
    "types": "token_type_embeddings",
    "norm": "LayerNorm",
}


class Layer(nn.Module):
    """One post-norm transformer layer."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH)
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH, eps=1e-12), nn.LayerNorm(WIDTH, eps=1e-12)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (batch, length, width); mask (batch, 1, 1, length), True where attention may look."""
        batch, length, width = x.shape

        def heads(part: Tensor) -> Tensor:
            return part.view(batch, length, HEADS, width // HEADS).transpose(1, 2)

        seen = F.scaled_dot_product_attention(
            heads(self.query(x)), heads(self.key(x)), heads(self.value(x)), attn_mask=mask
        )
        x = self.norm1(x + self.out(seen.transpose(1, 2).reshape(batch, length, width)))
        normed: Tensor = self.norm2(x + self.down(F.gelu(self.up(x))))
        return normed


class Encoder(nn.Module):
    """Token ids to the hidden states of the last of `layers` layers."""

    def __init__(self, layers: int = LAYERS) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(POSITIONS, WIDTH)
        self.types, self.norm = nn.Embedding(2, WIDTH), nn.LayerNorm(WIDTH, eps=1e-12)
        self.layers = nn.ModuleList(Layer() for _ in range(layers))

    def forward(self, ids: Tensor) -> Tensor:
        """ids (batch, length), padded with PAD -> (batch, length, width)."""
        mask = (ids != PAD)[:, None, None, :]
        x: Tensor = self.norm(self.words(ids) + self.positions.weight[: ids.shape[1]] + self.types.weight[0])
        for layer in self.layers:
            x = layer(x, mask)
        return x


def mean(x: Tensor, mask: Tensor) -> Tensor:
    """(batch, length, width) and (batch, length) -> (batch, width) in fp32; zero where nothing is real."""
    weights = mask.unsqueeze(-1).float()
    return (x.float() * weights).sum(1) / weights.sum(1).clamp(min=1.0)


def load_minilm(layers: int = LAYERS) -> Encoder:
    """The lowest layers of the pretrained encoder on the CPU, fp32, eval mode."""
    names = {f"{ours}.": f"embeddings.{theirs}." for ours, theirs in _EMBEDDINGS.items()}
    for index in range(layers):
        parts = {**_LINEARS, **_NORMS}.items()
        names |= {f"layers.{index}.{ours}.": f"encoder.layer.{index}.{theirs}." for ours, theirs in parts}
    with torch.device("meta"):
        encoder = Encoder(layers)
    with safe_open(minilm_folder() / "model.safetensors", framework="pt") as given:
        state = {name: given.get_tensor(_theirs(name, names)) for name in encoder.state_dict()}
    encoder.load_state_dict(state, assign=True)
    return encoder.requires_grad_(False).eval()


def _theirs(name: str, names: dict[str, str]) -> str:
    stem, _, kind = name.rpartition(".")
    return names[f"{stem}."] + kind
