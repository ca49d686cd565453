"""Greedy generation for a batch of prompts at once; every row ends by itself and leaves the batch.

    read all prompts ─► next tokens ─► rows that are done go ─► write the rest ─► next tokens ─► …

Greedy means deterministic: a row's text depends on its prompt alone, up to rounding. A long answer costs the others
nothing: after the short ones have left, the batch is as small as what is left of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

__all__ = ["Chat", "Generated", "Language", "generate"]


class Language(Protocol):
    """A causal language model."""

    positions: int
    """Tokens that prompt and answer may have together."""

    def read(self, ids: Tensor, real: Tensor, room: int) -> tuple[Tensor, Any]:
        """Left-padded prompts (batch, length) -> logits of the next token (batch, vocabulary), and a memory."""

    def write(self, ids: Tensor, real: Tensor, memory: Any) -> Tensor:
        """One token of each row (batch,); real (batch, length so far) -> logits of the next (batch, vocabulary)."""


class Chat(Protocol):
    """A language model's tokens and the form of its conversations."""

    @property
    def ends(self) -> frozenset[int]:
        """Tokens that end an answer."""

    @property
    def controls(self) -> tuple[str, ...]:
        """What text must not contain, because in a prompt it would be more than text."""

    def prompt(self, system: str, user: str) -> list[int]:
        """Ids of a conversation that waits for its answer, from text without `controls`."""

    def text(self, ids: Sequence[int]) -> str:
        """What ids say, without control tokens."""


@dataclass(frozen=True, slots=True)
class Generated:
    """An answer's ids without the end token; `ended` is False where the limit cut it off."""

    ids: list[int]
    ended: bool


def _never(ids: list[int]) -> bool:
    return False


@torch.inference_mode()
def generate(
    model: Language,
    prompts: Sequence[Sequence[int]],
    ends: frozenset[int],
    max_tokens: int,
    stop: Callable[[list[int]], bool] = _never,
    device: torch.device | str = "cpu",
) -> list[Generated]:
    """The likeliest next token again and again, until an end token, `stop` (asked after each token) or `max_tokens`."""
    if not prompts:
        return []
    said: list[list[int]] = [[] for _ in prompts]
    ended = [False] * len(prompts)
    rows = list(range(len(prompts)))  # who is still in the batch
    ids, real = (part.to(device) for part in padded(prompts))
    logits, memory = model.read(ids, real, max_tokens)
    while True:
        chosen = logits.argmax(-1)
        going = []
        for place, (row, token) in enumerate(zip(rows, chosen.tolist(), strict=True)):
            ended[row] = token in ends
            if not ended[row]:
                said[row].append(token)
                ended[row] = stop(said[row])
            if not ended[row] and len(said[row]) < max_tokens:
                going.append(place)
        if not going:
            return [Generated(*each) for each in zip(said, ended, strict=True)]
        if len(going) < len(rows):
            rows = [rows[place] for place in going]
            kept = torch.tensor(going, device=chosen.device)
            chosen, real = chosen[kept], real[kept]
            skip = int((~real.any(0)).sum())
            memory.keep(kept, skip)
            real = real[:, skip:]
        real = torch.cat([real, real.new_ones(len(rows), 1)], 1)
        logits = model.write(chosen, real, memory)


def padded(prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Prompts -> ids and where they are real, (batch, longest), padded on the left."""
    longest = max(map(len, prompts))
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    real = torch.zeros(len(prompts), longest, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt, dtype=torch.long)
        real[row, longest - len(prompt) :] = True
    return ids, real
