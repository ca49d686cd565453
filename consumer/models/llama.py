"""The Llama architecture as a small module of our own: RMSNorm, rotary positions, grouped queries, SwiGLU.

Written out because generation has to own its memory: rows that are done leave the batch, and the columns that only they
needed go with them. It also starts in a second, where importing `transformers` takes several.
Names of parameters and the order of their rows are those of Hugging Face's `LlamaForCausalLM`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

__all__ = ["Llama", "Shape"]


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a Llama model; the output layer is the input embedding."""

    vocabulary: int
    width: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    positions: int
    """Tokens that prompt and answer may have together."""
    rope_base: float = 10_000.0
    epsilon: float = 1e-5

    @property
    def head(self) -> int:
        return self.width // self.heads


class Memory:
    """Keys and values of everything read so far, for each layer (batch, kv_heads, room, head)."""

    def __init__(self, shape: Shape, batch: int, room: int, like: Tensor) -> None:
        size = (batch, shape.kv_heads, room, shape.head)
        self.layers = [(like.new_empty(size), like.new_empty(size)) for _ in range(shape.layers)]
        self.filled = 0

    def keep(self, rows: Tensor, skip: int) -> None:
        """Forget all but these rows of the batch, and the first `skip` columns, which are padding in all of them."""
        self.layers = [(k[rows, :, skip:], v[rows, :, skip:]) for k, v in self.layers]
        self.filled -= skip


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.q_proj = nn.Linear(shape.width, shape.heads * shape.head, bias=False)
        self.k_proj = nn.Linear(shape.width, shape.kv_heads * shape.head, bias=False)
        self.v_proj = nn.Linear(shape.width, shape.kv_heads * shape.head, bias=False)
        self.o_proj = nn.Linear(shape.heads * shape.head, shape.width, bias=False)

    def forward(
        self, x: Tensor, turn: tuple[Tensor, Tensor], mask: Tensor, past: tuple[Tensor, Tensor], at: int
    ) -> Tensor:
        """x (batch, new, width); mask (batch, 1, new, at + new); writes its keys and values to `past` from `at` on."""
        batch, new, _ = x.shape
        split = (batch, new, -1, self.shape.head)
        query = rotated(self.q_proj(x).view(split).transpose(1, 2), turn)
        keys, values = past
        keys[:, :, at : at + new] = rotated(self.k_proj(x).view(split).transpose(1, 2), turn)
        values[:, :, at : at + new] = self.v_proj(x).view(split).transpose(1, 2)
        seen = F.scaled_dot_product_attention(
            query, keys[:, :, : at + new], values[:, :, : at + new], attn_mask=mask, enable_gqa=True
        )
        out: Tensor = self.o_proj(seen.transpose(1, 2).reshape(batch, new, -1))
        return out


class Inner(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(shape.width, shape.inner, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(shape.inner, shape.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attention(shape), Inner(shape)
        self.input_layernorm = nn.RMSNorm(shape.width, eps=shape.epsilon)
        self.post_attention_layernorm = nn.RMSNorm(shape.width, eps=shape.epsilon)

    def forward(
        self, x: Tensor, turn: tuple[Tensor, Tensor], mask: Tensor, past: tuple[Tensor, Tensor], at: int
    ) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), turn, mask, past, at)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Llama(nn.Module):
    """Token ids to the logits of the next token; see `consumer.models.generate.Language`."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.positions = shape.positions
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.width)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.width, eps=shape.epsilon)

    def read(self, ids: Tensor, real: Tensor, room: int) -> tuple[Tensor, Memory]:
        """Prompts ids (batch, length), padded on the left where `real` is False -> logits (batch, vocabulary).

        The memory that comes with them has room for `room` tokens more.
        """
        batch, length = ids.shape
        memory = Memory(self.shape, batch, length + room, self.embed_tokens.weight)
        causal = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()
        itself = torch.eye(length, dtype=torch.bool, device=ids.device)  # or padding sees nothing: 0 / 0
        mask = (causal & real[:, None, :]) | itself
        places = (real.long().cumsum(1) - 1).clamp(min=0)
        return self._forward(ids, places, mask[:, None], memory), memory

    def write(self, ids: Tensor, real: Tensor, memory: Memory) -> Tensor:
        """One token more of each row: ids (batch,), real (batch, tokens with it) -> logits (batch, vocabulary)."""
        places = real.long().sum(1, keepdim=True) - 1
        return self._forward(ids[:, None], places, real[:, None, None, :], memory)

    def _forward(self, ids: Tensor, places: Tensor, mask: Tensor, memory: Memory) -> Tensor:
        x = self.embed_tokens(ids)
        turn = self._turn(places, x.dtype)
        for layer, past in zip(self.layers, memory.layers, strict=True):
            x = layer(x, turn, mask, past, memory.filled)
        memory.filled += ids.shape[1]
        return F.linear(self.norm(x[:, -1]), self.embed_tokens.weight).float()

    def _turn(self, places: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosine and sine of the rotary angles, (batch, 1, length, head)."""
        half = torch.arange(0, self.shape.head, 2, device=places.device, dtype=torch.float32)
        angles = places[:, None, :, None].float() * self.shape.rope_base ** (-half / self.shape.head)
        angles = torch.cat([angles, angles], -1)
        return angles.cos().to(dtype), angles.sin().to(dtype)


def rotated(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """x (batch, heads, length, head), turned by its position: the first half of a head pairs with the second."""
    first, second = x.chunk(2, -1)
    return x * turn[0] + torch.cat([-second, first], -1) * turn[1]
