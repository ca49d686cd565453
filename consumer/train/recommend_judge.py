"""Judging recommendations: how much of what households bought in a month stands among the first ten."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from consumer.models.recommend import NEVER, Recommender
from consumer.train.recommend_data import Moment
from consumer.train.recommend_fit import collated, ease, marks

__all__ = ["TOP", "figures", "judge", "references", "scores"]

Floats = npt.NDArray[np.float32]
Ranking = npt.NDArray[np.floating[Any]]
TOP = 10
_DISCOUNTS = 1 / np.log2(np.arange(2, TOP + 2))


def figures(ranked: Ranking, truth: Floats) -> dict[str, float]:
    """HR, NDCG and precision at TOP of scores (households, types) against 0 and 1; types at NEVER are not shown.

    Households that bought nothing of the kind are left out.
    """
    rows = np.flatnonzero(truth.sum(1) > 0)
    ranked, truth = ranked[rows], truth[rows]
    best = np.argsort(-ranked, axis=1, kind="stable")[:, :TOP]
    shown = np.take_along_axis(ranked, best, 1) > NEVER / 2
    hits = np.take_along_axis(truth, best, 1) * shown
    ideal = np.cumsum(_DISCOUNTS)[np.minimum(truth.sum(1).astype(int), TOP) - 1]
    found = {
        "households": float(len(rows)),
        "hr": float(hits.any(1).mean()),
        "ndcg": float(((hits * _DISCOUNTS).sum(1) / ideal).mean()),
        "precision": float(hits.mean()),
    }
    return {name: round(value, 4) for name, value in found.items()}


def honesty(odds: Ranking, truth: Floats) -> dict[str, float]:
    """Mean stated probability of the TOP types that are shown to all households, and the share that came true."""
    best = np.argsort(-odds, axis=1, kind="stable")[:, :TOP]
    shown = np.take_along_axis(odds, best, 1)
    real = shown > NEVER / 2
    stated = 1 / (1 + np.exp(-shown[real].astype(np.float64)))
    came = np.take_along_axis(truth, best, 1)[real]
    return {"stated": round(float(stated.mean()), 4), "came_true": round(float(came.mean()), 4)}


def scores(model: Recommender, month: Sequence[Moment]) -> tuple[Floats, Floats]:
    """Log-odds of all types (households, types): to buy again (NEVER for types not in the history), and as new."""
    own = np.full((len(month), model.types), NEVER, dtype=np.float32)
    new = np.zeros((len(month), model.types), dtype=np.float32)
    for start in range(0, len(month), 128):
        part = slice(start, start + 128)
        slots, features = collated(month[part], model.types)
        with torch.inference_mode():
            whom = model.customers(slots, features)
            all_types = torch.full((len(slots), model.types + 1), NEVER)
            own[part] = all_types.scatter_(1, slots, model.again(whom))[:, : model.types].numpy()
            new[part] = model.every(whom).numpy()
    return own, new


def judge(model: Recommender, month: Sequence[Moment]) -> dict[str, dict[str, float]]:
    """Figures of the model for one month after its training.

    `something_new` bars what the household ever bought, `something_new_served` only what its bounded state knows of.
    """
    own, new = scores(model, month)
    seen = marks([one.seen for one in month], model.types)
    known = marks([one.past.slots for one in month], model.types)
    bought = marks([one.bought for one in month], model.types)
    lists = {
        "buy_again": (own, bought),
        "something_new": (np.where(seen > 0, NEVER, new), bought * (1 - seen)),
        "something_new_served": (np.where(known > 0, NEVER, new), bought * (1 - seen)),
    }
    return {name: figures(*pair) | honesty(*pair) for name, pair in lists.items()}


def references(month: Sequence[Moment], types: int) -> dict[str, dict[str, float]]:
    """The same figures of simple rules on the same month."""
    seen = marks([one.seen for one in month], types)
    bought = marks([one.bought for one in month], types)
    popular = np.tile(seen.sum(0), (len(month), 1))
    count, decayed = np.zeros_like(seen), np.zeros_like(seen)
    for row, one in enumerate(month):
        count[row, one.past.slots] = np.expm1(one.past.features[:, 0])
        decayed[row, one.past.slots] = np.expm1(one.past.features[:, 1])
    new = bought * (1 - seen)
    return {
        "own_frequency": figures(count + 1e-6 * popular, bought),
        "own_decayed_60d": figures(decayed + 1e-6 * popular, bought),
        "popularity_new": figures(np.where(seen > 0, NEVER, popular), new),
        "ease_new": figures(np.where(seen > 0, NEVER, seen @ ease(seen)), new),
    }
