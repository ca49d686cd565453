"""Fitting the parts of the spam model on some families of mail: encoder, n-grams, and how they are joined."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from consumer.models.encoder import LAYERS, LINEARS, WIDTH, Encoder, load_minilm, mean
from consumer.models.minilm import PAD
from consumer.models.spam import ENCODER_IDS, FIRST_TUNED, HASH_BITS, buckets, window
from consumer.train.spam_data import Mails

__all__ = ["Lower", "Tuned", "fit_encoder", "fit_grams", "fit_join"]

Indices = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float64]
Tick = Callable[[], None]

RANK = 8
STEPS = 240
BATCH = 32
PEAK_LR = 6e-4
TOKEN_DROPOUT = 0.15
WINDOW_SHARE = 0.3
"""Share of training mails of which the upper layers see only a random part."""
SMOOTHING = 0.04
EMA = 0.98
GRAM_STEPS = 200
GRAM_C = 10.0


class LowRank(nn.Module):
    """A frozen linear map plus a trained change of low rank: x W + x A B."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear
        self.a = nn.Parameter(torch.randn(RANK, linear.in_features) / math.sqrt(linear.in_features))
        self.b = nn.Parameter(torch.zeros(linear.out_features, RANK))

    def forward(self, x: Tensor) -> Tensor:
        changed: Tensor = self.linear(x) + F.linear(F.linear(x, self.a), self.b)
        return changed


class Lower:
    """What the frozen lower half of the encoder says about every mail, computed once, in a temporary file."""

    def __init__(self, mails: Mails, tick: Tick = lambda: None, batch: int = 64) -> None:
        self._file = tempfile.NamedTemporaryFile(suffix=".bf16")  # noqa: SIM115 - lives as long as we do
        shape = (len(mails.ids), ENCODER_IDS, WIDTH)
        self.states = torch.from_file(
            self._file.name, shared=True, size=math.prod(shape), dtype=torch.bfloat16
        ).view(shape)
        self.lengths = torch.tensor([min(len(ids), ENCODER_IDS) for ids in mails.ids])
        encoder = load_minilm()
        for rows in self.lengths.argsort().split(batch):
            ids = window(padded(mails, rows.numpy(), ENCODER_IDS))
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
                states = encoder.climb(encoder.embed(ids), ids != PAD, 0, FIRST_TUNED)
            self.states[rows, : ids.shape[1]] = states.to(torch.bfloat16)
            tick()

    def take(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """States (batch, longest, width) and mask of these mails."""
        longest = int(self.lengths[rows].max())
        return self.states[rows, :longest], torch.arange(longest) < self.lengths[rows][:, None]


@dataclass(frozen=True, slots=True)
class Tuned:
    """The upper half of the encoder with its low-rank change, and the head."""

    encoder: Encoder
    head: nn.Linear

    def score(self, lower: Lower, rows: Indices, tick: Tick = lambda: None, batch: int = 64) -> Scores:
        """Log-odds of spam of these mails."""
        wanted = torch.from_numpy(rows)
        scores = torch.zeros(len(rows))
        for part in lower.lengths[wanted].argsort().split(batch):
            states, mask = lower.take(wanted[part])
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
                top = self.encoder.climb(states, mask, FIRST_TUNED)
            with torch.inference_mode():
                scores[part] = self.head(mean(top, mask)).squeeze(-1)
            tick()
        return scores.double().numpy()

    def weights(self) -> dict[str, Tensor]:
        """`3.query.a` … and the head, as `load_spam` reads them."""
        found = {"head.weight": self.head.weight, "head.bias": self.head.bias}
        for index in range(FIRST_TUNED, LAYERS):
            for name in LINEARS:
                low: LowRank = getattr(self.encoder.layers[index], name)
                found |= {f"{index}.{name}.a": low.a, f"{index}.{name}.b": low.b}
        return {name: tensor.detach().clone() for name, tensor in found.items()}


def padded(mails: Mails, rows: Indices, most: int) -> Tensor:
    """Ids (batch, longest) of these mails, each cut at `most`."""
    ids = [torch.from_numpy(mails.ids[row][:most]) for row in rows]
    return nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=PAD)


def groups(mails: Mails, rows: Indices) -> list[Indices]:
    """The mails of each family and label: all weigh the same in training, however many there are."""
    labels, families = mails.spam[rows], mails.family[rows]
    return [rows[(families == f) & (labels == spam)] for f in sorted(set(families)) for spam in (False, True)]


def fit_encoder(mails: Mails, lower: Lower, rows: Indices, seed: int, tick: Tick = lambda: None) -> Tuned:
    """Tune the upper layers on these mails."""
    torch.manual_seed(seed)
    chance = np.random.default_rng(seed)
    encoder = load_minilm()
    for layer in encoder.layers[FIRST_TUNED:]:
        for name in LINEARS:
            setattr(layer, name, LowRank(getattr(layer, name)))
    head = nn.Linear(WIDTH, 1)
    low = [p for p in encoder.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [{"params": low, "lr": PEAK_LR}, {"params": head.parameters(), "lr": 2 * PEAK_LR}], weight_decay=0.02
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [PEAK_LR, 2 * PEAK_LR], total_steps=STEPS, pct_start=0.1
    )
    average = nn.ModuleList([encoder, head])
    smoothed = [p.detach().clone() for p in average.parameters() if p.requires_grad]
    kinds = groups(mails, rows)
    for step in range(STEPS):
        chosen = np.concatenate([chance.choice(kind, -(-BATCH // len(kinds))) for kind in kinds])
        states, mask = lower.take(torch.from_numpy(chosen))
        mask = _hidden_parts(mask)
        with torch.autocast("cpu", torch.bfloat16):
            top = encoder.climb(states, mask, FIRST_TUNED)
        scores = head(F.dropout(mean(top, mask), 0.1)).squeeze(-1)
        truth = torch.from_numpy(mails.spam[chosen]).float() * (1 - 2 * SMOOTHING) + SMOOTHING
        loss = F.binary_cross_entropy_with_logits(scores, truth)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        keep = min(EMA, step / (step + 10))
        for kept, new in zip(smoothed, (p for p in average.parameters() if p.requires_grad), strict=True):
            kept.lerp_(new.detach(), 1 - keep)
        tick()
    for kept, new in zip(smoothed, (p for p in average.parameters() if p.requires_grad), strict=True):
        new.data.copy_(kept)
    return Tuned(encoder.requires_grad_(False).eval(), head.requires_grad_(False))


def _hidden_parts(mask: Tensor) -> Tensor:
    """Hide single tokens everywhere, and of some mails all but a random window: form and length must not decide."""
    kept = mask & (torch.rand(mask.shape) > TOKEN_DROPOUT)
    place = torch.arange(mask.shape[1])[None, :].float() / mask.sum(1, keepdim=True)
    width = 0.3 + 0.5 * torch.rand(len(mask), 1)
    start = torch.rand(len(mask), 1) * (1 - width)
    cropped = torch.rand(len(mask), 1) < WINDOW_SHARE
    kept &= ~cropped | ((place >= start) & (place < start + width))
    kept[:, 0] = True
    return kept


def fit_grams(mails: Mails, rows: Indices, bags: list[Tensor]) -> Tensor:
    """Weights of the hashed n-grams (2**HASH_BITS,): logistic regression with a quadratic penalty.

    bags: the buckets of each mail of `mails`, as `gram_bags` gives them.
    """
    from scipy.sparse import csr_matrix
    from sklearn.linear_model import LogisticRegression

    chosen = [bags[row].numpy() for row in rows]
    counts = np.array([len(bag) for bag in chosen])
    values = np.repeat(1 / np.sqrt(np.maximum(counts, 1)), counts)
    starts = np.concatenate([[0], counts.cumsum()])
    matrix = csr_matrix((values, np.concatenate(chosen), starts), shape=(len(rows), 1 << HASH_BITS))
    kinds = groups(mails, rows)
    share = np.zeros(len(mails.ids))
    for kind in kinds:
        share[kind] = len(rows) / (len(kinds) * len(kind))
    model = LogisticRegression(C=GRAM_C, max_iter=GRAM_STEPS, tol=1e-3)
    model.fit(matrix, mails.spam[rows], sample_weight=share[rows])
    return torch.from_numpy(model.coef_[0]).float()


def gram_bags(mails: Mails) -> list[Tensor]:
    """Hash buckets of each mail's n-grams, each once."""
    bags: list[Tensor] = []
    for start in range(0, len(mails.ids), 256):
        rows = np.arange(start, min(start + 256, len(mails.ids)))
        bags += [row[row < 1 << HASH_BITS].clone() for row in buckets(padded(mails, rows, 1 << 30))]
    return bags


def gram_scores(weights: Tensor, bags: list[Tensor], rows: Indices) -> Scores:
    """What `SpamModel.gram_score` gives."""
    return np.array([float(weights[bags[row]].sum()) / math.sqrt(max(1, len(bags[row]))) for row in rows])


def fit_join(
    scores: npt.NDArray[np.float64], spam: npt.NDArray[np.bool_], share: Scores
) -> tuple[Tensor, Tensor]:
    """Weights (n,) and bias of the calibrated sum of scores (mails, n); `share` weighs the mails."""
    x, y, w = (torch.from_numpy(part) for part in (scores, spam.astype(np.float64), share / share.sum()))
    weights = torch.zeros(x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros((), dtype=torch.float64, requires_grad=True)
    scale = x.std(0)
    optimizer = torch.optim.LBFGS([weights, bias], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        odds = (x / scale) @ weights + bias
        loss = (
            F.binary_cross_entropy_with_logits(odds, y, weight=w, reduction="sum")
            + 1e-3 * weights.square().sum()
        )
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)
    return (weights.detach() / scale).float(), bias.detach().float()
