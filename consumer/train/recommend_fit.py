"""Fitting the parts of the recommender: encoder and network by gradient, item-to-item weights in closed form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from consumer.models.recommend import DIM, NEVER, Recommender
from consumer.purchases import FEATURES
from consumer.train.recommend_data import Moment

__all__ = ["Blend", "Parts", "adoption", "collated", "ease", "fit", "join", "marks"]

Floats = npt.NDArray[np.float32]

EPOCHS = 4
BATCH = 256
RATE = 2e-3
DROPOUT = 0.2
NEW_LOSS = 0.3
"""Weight of the loss of what is new beside that of what is bought again."""
LENGTH_NOISE = 15.0
"""Deviation by which lengths are shuffled before batches of about equal length are cut."""
RIDGE = 1_000.0
"""Penalty of the item-to-item weights."""


@dataclass(frozen=True, slots=True)
class Blend:
    """How what speaks for a new type is summed up; chosen on a month that the parts have not seen."""

    adoption: float
    vectors: float
    slope: float
    offset: float
    """Log-odds are slope x sum + offset."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What was fitted on the months before one day."""

    model: Recommender
    """Its table and bias are still to be joined."""
    vectors: Tensor
    """(DIM, types)"""
    vector_bias: Tensor
    weights: Floats
    """EASE over the mean deviation of its scores (types, types)."""
    adoption: Floats
    """Logarithm of the share of households that took a type up in the last month (types,)."""


def collated(part: Sequence[Moment], types: int) -> tuple[Tensor, Tensor]:
    """Slots (batch, longest), padded with `types`, and features (batch, longest, FEATURES)."""
    longest = max(1, *(len(one.past.slots) for one in part), 1)
    slots = np.full((len(part), longest), types, dtype=np.int64)
    features = np.zeros((len(part), longest, FEATURES), dtype=np.float32)
    for row, one in enumerate(part):
        slots[row, : len(one.past.slots)] = one.past.slots
        features[row, : len(one.past.slots)] = one.past.features
    return torch.from_numpy(slots), torch.from_numpy(features)


def marks(rows: Sequence[npt.NDArray[np.int32]], types: int) -> Floats:
    """Sets of types as a matrix of 0 and 1 (rows, types)."""
    found = np.zeros((len(rows), types), dtype=np.float32)
    for row, slots in zip(found, rows, strict=True):
        row[slots] = 1.0
    return found


def ease(seen: Floats) -> Floats:
    """Item-to-item weights of the embarrassingly shallow autoencoder (types, types), zero on the diagonal."""
    gram = (seen.T @ seen).astype(np.float64) + RIDGE * np.eye(seen.shape[1])
    inverse = np.linalg.inv(gram)
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0.0)
    found: Floats = weights.astype(np.float32)
    return found


def adoption(month: Sequence[Moment], types: int) -> Floats:
    """Logarithm of the share of households without a type that bought it in this month (types,), around its mean."""
    seen = marks([one.seen for one in month], types)
    new = marks([one.bought for one in month], types) * (1 - seen)
    share: Floats = np.log((new.sum(0) + 2) / ((1 - seen).sum(0) + 100)).astype(np.float32)
    share -= share.mean()
    return share


def fit(
    months: Sequence[Sequence[Moment]],
    last: Sequence[Moment],
    now: Sequence[Moment],
    types: int,
    seed: int,
    tick: Callable[[], None],
) -> Parts:
    """Parts from `months` (whose following month is over), `last` (the last full month) and what `now` has seen.

    `tick` is called after each of EPOCHS epochs.
    """
    seen = marks([one.seen for one in now], types)
    weights = ease(seen)
    weights /= (seen @ weights).std(1).mean()
    torch.manual_seed(seed)
    model = Recommender(types)
    out, bias = nn.Parameter(torch.randn(DIM, types) * 0.05), nn.Parameter(torch.zeros(types))
    train = [one for month in months for one in month]
    _begin(model, train, last)
    _descend(model, out, bias, train, seed, tick)
    model.requires_grad_(False).eval()
    return Parts(model, out.detach(), bias.detach(), weights, adoption(last, types))


def _begin(model: Recommender, train: Sequence[Moment], last: Sequence[Moment]) -> None:
    features = np.concatenate([one.past.features for one in train[::20]])
    model.shift.copy_(torch.from_numpy(features.mean(0)))
    model.scale.copy_(torch.from_numpy(features.std(0) + 0.01))
    for embedding, deviation in ((model.item, 0.1), (model.taste, 0.05), (model.liking, 0.0)):
        nn.init.normal_(embedding.weight, std=deviation)
    share = (marks([one.bought for one in last], model.types).sum(0) + 0.5) / (len(last) + 1)
    model.popular.copy_(torch.from_numpy(share).logit())


def _descend(
    model: Recommender,
    out: Tensor,
    bias: Tensor,
    train: Sequence[Moment],
    seed: int,
    tick: Callable[[], None],
) -> None:
    lengths = np.array([len(one.past.slots) for one in train])
    generator = np.random.default_rng(seed)
    parameters = [*model.parameters(), out, bias]
    optimizer = torch.optim.AdamW(parameters, RATE, weight_decay=0.01)
    steps = EPOCHS * -(-len(train) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    for _ in range(EPOCHS):
        order = np.argsort(lengths + generator.normal(0, LENGTH_NOISE, len(train)), kind="stable")
        starts = generator.permutation(np.arange(0, len(train), BATCH))
        for start in starts.tolist():
            part = [train[i] for i in order[start : start + BATCH].tolist()]
            optimizer.zero_grad()
            _loss(model, out, bias, part).backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
        tick()


def _loss(model: Recommender, out: Tensor, bias: Tensor, part: Sequence[Moment]) -> Tensor:
    """Own types: was it bought in the month.  Others: which of those never bought before were bought."""
    slots, features = collated(part, model.types)
    bought = torch.from_numpy(marks([one.bought for one in part], model.types))
    seen = torch.from_numpy(marks([one.seen for one in part], model.types)).bool()
    whom = model.customers(slots, features, DROPOUT)
    real = slots != model.types
    truth = F.pad(bought, (0, 1)).gather(1, slots)
    again = F.binary_cross_entropy_with_logits(model.again(whom)[real], truth[real])
    new = bought * ~seen
    chance = F.log_softmax((whom.vector @ out + bias).masked_fill(seen, NEVER), 1)
    return again - NEW_LOSS * (chance * new).sum() / new.sum().clamp(min=1)


def join(parts: Parts, blend: Blend) -> Recommender:
    """The model with its item-to-item weights, item vectors and bias in one table."""
    model = parts.model
    table = torch.cat([torch.from_numpy(parts.weights), parts.vectors * blend.vectors])
    bias = torch.from_numpy(parts.adoption) * blend.adoption + parts.vector_bias * blend.vectors
    model.table.copy_(table * blend.slope)
    model.bias.copy_(bias * blend.slope + blend.offset)
    return model
