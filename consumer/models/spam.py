"""The spam model: the lower half of MiniLM-L6 on the beginning of a mail, and hashed n-grams of more of it.

Input of one mail: int ids `[CLS] subject [SEP] body [SEP]`, at most 512; the encoder sees the first ENCODER_IDS.
Two scores and their calibrated sum: a small perceptron on what the encoder's lower half says, and n-grams. The encoder
keeps MiniLM's weights, and only its lower half: tuned, or with its upper half, it did worse on mail of new kinds.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import load_file
from torch import Tensor, nn

from consumer.models.encoder import WIDTH, Encoder, load_minilm, mean
from consumer.models.minilm import PAD, SEP
from consumer.models.tokens import MAX_SUBJECT_IDS

__all__ = [
    "ENCODER_IDS",
    "HASH_BITS",
    "LAYERS",
    "ORDERS",
    "SKETCH_BITS",
    "SUMMARY",
    "WEIGHTS",
    "WORDLESS_IDS",
    "Loaded",
    "Skimmer",
    "SpamModel",
    "buckets",
    "load_spam",
    "summary",
    "window",
]

ENCODER_IDS = 128
LAYERS = 3
HASH_BITS = 18
WORDLESS_IDS = 3
"""Length of a mail without any word: CLS, SEP, SEP."""
ORDERS = (1, 2, 3)
SUBJECT_ORDERS = (1, 2)
SUBJECT_IDS = MAX_SUBJECT_IDS + 2
SUMMARY = 5 * WIDTH
SKETCH_BITS = 64
WEIGHTS = Path(__file__).parent / "weights" / "spam"

_MULTIPLIERS = (0x1E3779B97F4A7C15, 0x3F58476D1CE4E5B9)  # odd; products wrap round in int64, everywhere alike


def buckets(ids: Tensor) -> Tensor:
    """Hash buckets of each row's n-grams, and of its subject's once more, sorted, each once.

    ids (batch, length) padded with PAD -> int64 (batch, more); places without an n-gram hold 2**HASH_BITS.
    """
    ids = ids.long()
    subject = ids[:, :SUBJECT_IDS].masked_fill(~in_subject(ids[:, :SUBJECT_IDS]), PAD)
    found = [_hashed(ids, order, order) for order in ORDERS]
    found += [_hashed(subject, order, 100 + order) for order in SUBJECT_ORDERS]
    rows = torch.cat(found, 1).sort(1).values
    again = torch.zeros_like(rows, dtype=torch.bool)
    again[:, 1:] = rows[:, 1:] == rows[:, :-1]
    return rows.masked_fill(again, 1 << HASH_BITS)


def _hashed(ids: Tensor, order: int, salt: int) -> Tensor:
    state = torch.zeros_like(ids)
    real = torch.ones_like(ids, dtype=torch.bool)
    for shift in range(order):
        part = torch.full_like(ids, PAD)
        part[:, : max(0, ids.shape[1] - shift)] = ids[:, shift:]
        real &= part != PAD
        state = (state * _MULTIPLIERS[0] + part + salt) * _MULTIPLIERS[1]
        state ^= (state >> 29) & 0x7FFFFFFFF
    return torch.where(real, (state >> 23) & ((1 << HASH_BITS) - 1), 1 << HASH_BITS)


def in_subject(ids: Tensor) -> Tensor:
    """True up to and with the first SEP: (batch, length)."""
    ends = (ids == SEP).int()
    return (ends.cumsum(1) - ends) == 0


def window(ids: Tensor) -> Tensor:
    """What the encoder sees of ids (batch, length): the first ENCODER_IDS, ended by SEP like every shorter mail."""
    seen = ids[:, :ENCODER_IDS].long()
    if ids.shape[1] >= ENCODER_IDS:
        seen[:, -1] = torch.where(seen[:, -1] != PAD, SEP, PAD)
    return seen


def summary(states: Tensor, ids: Tensor) -> Tensor:
    """States (batch, length, WIDTH) of window ids -> fp32 (batch, SUMMARY): mean, maximum, deviation, subject, body."""
    states = states.float()
    mask = ids != PAD
    subject = in_subject(ids) & mask
    middle = mean(states, mask)
    spread = mean((states - middle[:, None]).square(), mask).sqrt()
    most = states.masked_fill(~mask[:, :, None], -9.0).amax(1)
    return torch.cat([middle, most, spread, mean(states, subject), mean(states, mask & ~subject)], 1)


class Skimmer(nn.Module):
    """A small perceptron on the summary of what the encoder says."""

    def __init__(self) -> None:
        super().__init__()
        self.shift, self.scale = nn.Buffer(torch.zeros(SUMMARY)), nn.Buffer(torch.ones(SUMMARY))
        self.hidden, self.out = nn.Linear(SUMMARY, 64), nn.Linear(64, 1)

    def forward(self, summaries: Tensor) -> Tensor:
        """(batch, SUMMARY) -> (batch,)."""
        return self.judge(self.standard(summaries))

    def standard(self, summaries: Tensor) -> Tensor:
        return (summaries - self.shift) * self.scale

    def judge(self, x: Tensor, dropout: float = 0.0) -> Tensor:
        """Standardised summaries (batch, SUMMARY) -> (batch,)."""
        hidden = F.dropout(F.gelu(self.hidden(F.dropout(x, dropout))), dropout)
        score: Tensor = self.out(hidden).squeeze(-1)
        return score


def planes() -> Tensor:
    """Normals (WIDTH, SKETCH_BITS) of fixed planes through the middle of the mails, each +-1 / root of WIDTH."""
    raw = np.frombuffer(hashlib.shake_128(b"sketch").digest(WIDTH * SKETCH_BITS // 8), np.uint8)
    signs = np.unpackbits(raw).reshape(WIDTH, SKETCH_BITS).astype(np.float32) * 2 - 1
    return torch.from_numpy(signs / np.sqrt(WIDTH, dtype=np.float32))


class SpamModel(nn.Module):
    """Token ids to the log-odds of spam, calibrated: two scores and their sum."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.skimmer = Skimmer()
        self.grams = nn.Embedding((1 << HASH_BITS) + 1, 1)
        self.join = nn.Linear(2, 1)
        self.planes = nn.Buffer(planes(), persistent=False)

    def gram_score(self, ids: Tensor) -> Tensor:
        """ids (batch, length) -> (batch,): weights of the n-grams, over the root of their number."""
        rows = buckets(ids)
        count = (rows != 1 << HASH_BITS).sum(1).clamp(min=1)
        total: Tensor = self.grams(rows).squeeze(-1).float().sum(1) / count.sqrt()
        return total

    def scores(self, ids: Tensor) -> Tensor:
        """ids (batch, length) -> fp32 (batch, 2): skimmer, n-grams."""
        seen = window(ids)
        states = self.encoder(seen)
        with torch.autocast(ids.device.type, enabled=False):
            return torch.stack([self.skimmer(summary(states, seen)), self.gram_score(ids)], 1)

    def forward(self, ids: Tensor) -> Tensor:
        """ids (batch, length), padded with PAD -> fp32 log-odds (batch,); 0 for a mail without words."""
        return self.odds(ids, self.scores(ids))

    def odds(self, ids: Tensor, scores: Tensor) -> Tensor:
        with torch.autocast(ids.device.type, enabled=False):
            odds: Tensor = self.join(scores).squeeze(-1)
        return odds * (ids != PAD).sum(1).gt(WORDLESS_IDS)

    def sketched(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """ids (batch, length) -> log-odds (batch,) and, of the encoder's mean, the sides (batch, SKETCH_BITS) on which
        it lies of as many fixed planes: cosines whose signs are the sketch."""
        seen = window(ids)
        states = self.encoder(seen)
        with torch.autocast(ids.device.type, enabled=False):
            said = summary(states, seen)
            scores = torch.stack([self.skimmer(said), self.gram_score(ids)], 1)
            middle = F.normalize(self.skimmer.standard(said)[:, :WIDTH], dim=1)
            return self.odds(ids, scores), middle @ self.planes


@dataclass(frozen=True, slots=True)
class Loaded:
    model: SpamModel
    threshold: float
    version: str


def load_spam(folder: Path = WEIGHTS) -> Loaded:
    """The shipped model on the CPU, fp32, eval mode."""
    given = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
    card = json.loads((folder / "card.json").read_text())
    with torch.device("meta"):
        model = SpamModel(encoder=nn.Identity())  # type: ignore[arg-type]
    grams = torch.cat([given["grams"], torch.zeros(1)]).unsqueeze(1)
    rest = {name: tensor for name, tensor in given.items() if name.startswith(("skimmer.", "join."))}
    model.load_state_dict({**rest, "grams.weight": grams}, assign=True)
    model.encoder = load_minilm(LAYERS)
    return Loaded(model.requires_grad_(False).eval(), float(card["threshold"]), str(card["version"]))
