"""Fitting the parts of the spam model on some families of mail: skimmer, n-grams, and how they are joined."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from consumer.models.encoder import load_minilm
from consumer.models.minilm import PAD
from consumer.models.spam import ENCODER_IDS, HASH_BITS, LAYERS, SUMMARY, Skimmer, buckets, summary, window
from consumer.train.spam_data import Mails

__all__ = [
    "Indices",
    "fit_grams",
    "fit_join",
    "fit_skimmer",
    "gram_bags",
    "gram_scores",
    "padded",
    "summaries",
]

Indices = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float64]
Tick = Callable[[], None]

GRAM_C = 20.0
DISAGREED = 0.3
"""Size of an n-gram that speaks for spam in one family and against it in another; the others have 1."""
SKIMMER_STEPS = 2_500
SKIMMER_BATCH = 256
SKIMMER_DROPOUT = 0.3
SKIMMER_SMOOTHING = 0.04
MIXUP = 0.4
"""Beta parameter: the perceptron learns from mixtures of two mails, which makes it straighter between families."""


def padded(mails: Mails, rows: Indices, most: int) -> Tensor:
    """Ids (batch, longest) of these mails, each cut at `most`."""
    ids = [torch.from_numpy(mails.ids[row][:most]) for row in rows]
    return nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=PAD)


def groups(mails: Mails, rows: Indices) -> list[Indices]:
    """The mails of each family and label (good, spam, good, ...): all weigh the same, however many there are."""
    labels, families = mails.spam[rows], mails.family[rows]
    return [rows[(families == f) & (labels == spam)] for f in sorted(set(families)) for spam in (False, True)]


def summaries(mails: Mails, batch: int, tick: Tick) -> Tensor:
    """What the encoder says about every mail (mails, SUMMARY), in bf16 as workers mostly run it."""
    encoder = load_minilm(LAYERS)
    found = torch.zeros(len(mails.ids), SUMMARY)
    lengths = torch.tensor([len(ids) for ids in mails.ids])
    for rows in lengths.argsort().split(batch):
        ids = window(padded(mails, rows.numpy(), ENCODER_IDS))
        with torch.inference_mode():
            with torch.autocast("cpu", torch.bfloat16):
                states = encoder(ids)
            found[rows] = summary(states, ids)
        tick()
    return found


def gram_bags(mails: Mails) -> list[Tensor]:
    """Hash buckets of each mail's n-grams, each once."""
    bags: list[Tensor] = []
    for start in range(0, len(mails.ids), 256):
        rows = np.arange(start, min(start + 256, len(mails.ids)))
        bags += [row[row < 1 << HASH_BITS].int() for row in buckets(padded(mails, rows, 1 << 30))]
    return bags


def gram_scores(weights: Tensor, bags: list[Tensor], rows: Indices) -> Scores:
    """What `SpamModel.gram_score` gives."""
    return np.array([float(weights[bags[row]].sum()) / math.sqrt(max(1, len(bags[row]))) for row in rows])


def fit_grams(mails: Mails, rows: Indices, bags: list[Tensor]) -> Tensor:
    """Weights of the hashed n-grams (2**HASH_BITS,): logistic regression with a quadratic penalty."""
    from scipy.sparse import csr_matrix, diags
    from sklearn.linear_model import LogisticRegression

    chosen = [bags[row].numpy() for row in rows]
    counts = np.array([len(bag) for bag in chosen])
    values = np.repeat(1 / np.sqrt(np.maximum(counts, 1)), counts).astype(np.float32)
    starts = np.concatenate([[0], counts.cumsum()])
    matrix = csr_matrix((values, np.concatenate(chosen), starts), shape=(len(rows), 1 << HASH_BITS))
    size = _agreement(mails, rows, bags)
    model = LogisticRegression(C=GRAM_C, max_iter=200, tol=1e-5)
    model.fit(
        (matrix @ diags(size)).tocsr(), mails.spam[rows], sample_weight=_shares(mails, rows) * len(rows)
    )
    return torch.from_numpy(model.coef_[0] * size).float()


def _agreement(mails: Mails, rows: Indices, bags: list[Tensor]) -> npt.NDArray[np.float32]:
    """1 for buckets that speak for the same side in every family of these mails, DISAGREED for the others."""
    kinds = groups(mails, rows)
    found = [
        np.bincount(np.concatenate([bags[row].numpy() for row in kind]), minlength=1 << HASH_BITS) + 1
        for kind in kinds
    ]
    rates = [np.log(count / (len(kind) + 2)) for count, kind in zip(found, kinds, strict=True)]
    sides = np.stack([np.sign(spam - ham) for ham, spam in zip(rates[::2], rates[1::2], strict=True)])
    return np.where(np.abs(sides.sum(0)) == len(sides), 1.0, DISAGREED).astype(np.float32)


def _shares(mails: Mails, rows: Indices) -> Scores:
    """Weights of these mails, summing to 1, under which every family and label counts the same."""
    kinds = groups(mails, rows)
    share = np.zeros(len(mails.ids))
    for kind in kinds:
        share[kind] = 1 / (len(kinds) * len(kind))
    return share[rows]


def fit_skimmer(mails: Mails, rows: Indices, found: Tensor, seed: int) -> Skimmer:
    """The perceptron on summaries (all mails, SUMMARY)."""
    torch.manual_seed(seed)
    skimmer = Skimmer()
    seen = found[torch.from_numpy(rows)]
    skimmer.shift.copy_(seen.mean(0))
    skimmer.scale.copy_(1 / seen.std(0).clamp(min=0.02))
    x = skimmer.standard(seen)
    truth = torch.from_numpy(mails.spam[rows]).float() * (1 - 2 * SKIMMER_SMOOTHING) + SKIMMER_SMOOTHING
    share = torch.from_numpy(_shares(mails, rows))
    optimizer = torch.optim.AdamW(skimmer.parameters(), 1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, SKIMMER_STEPS)
    beta = torch.distributions.Beta(MIXUP, MIXUP)
    for _ in range(SKIMMER_STEPS):
        one = torch.multinomial(share, SKIMMER_BATCH, replacement=True)
        other = one[torch.randperm(SKIMMER_BATCH)]
        part = beta.sample((SKIMMER_BATCH,))
        mixed = part[:, None] * x[one] + (1 - part[:, None]) * x[other]
        target = part * truth[one] + (1 - part) * truth[other]
        loss = F.binary_cross_entropy_with_logits(skimmer.judge(mixed, SKIMMER_DROPOUT), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return skimmer.requires_grad_(False)


def fit_join(
    scores: npt.NDArray[np.float64], spam: npt.NDArray[np.bool_], share: Scores
) -> tuple[Tensor, Tensor]:
    """Weights (n,) and bias of the calibrated sum of scores (mails, n); `share` weighs the mails.

    All scores count the same, in units of their deviation; only slope and bias are fitted: which score is the better
    one changes from family to family, so freely fitted weights did worse on the next family.
    """
    deviation = torch.from_numpy(scores.std(0))
    x = (torch.from_numpy(scores) / deviation).sum(1)
    truth, weight = torch.from_numpy(spam.astype(np.float64)), torch.from_numpy(share / share.sum())
    line = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([line], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(x * line[0] + line[1], truth, weight, reduction="sum")
        loss.backward()
        return loss

    optimizer.step(closure)
    slope, bias = line.detach()
    return (slope / deviation).float(), bias.float()
