"""Training and judging the spam model: leave one family out, then train on all and write weights and card.

Everything that is chosen for a family left out (weights, how scores are joined, calibration, threshold) is chosen on
the other families; the shipped model is made by the same recipe from all of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from safetensors.torch import save_file
from torch import Tensor

from consumer.errors import Fatal
from consumer.models.spam import WEIGHTS, Skimmer, load_spam
from consumer.models.tokens import MAX_IDS
from consumer.train.card import Flags, Floats, cut, figures, model_card, table
from consumer.train.spam_data import Mails, read_mails
from consumer.train.spam_fit import (
    Indices,
    fit_grams,
    fit_join,
    fit_skimmer,
    gram_bags,
    gram_scores,
    padded,
    summaries,
)

__all__ = ["evaluate", "train"]

ALLOWED_FPR = 0.015
"""False positives that the threshold may give on each family that its models have not seen. We promise 2 % at most; a
quarter of that is margin, because the next family is another one."""
BATCH = 64


@dataclass(frozen=True, slots=True)
class Parts:
    """What was fitted on the same mails."""

    skimmer: Skimmer
    grams: Tensor


@dataclass(frozen=True, slots=True)
class Unseen:
    """Scores (mails, 2) of mails whose family their model has never seen."""

    rows: Indices
    scores: Floats


@dataclass(frozen=True, slots=True)
class Joined:
    """How the scores become calibrated log-odds, and from which probability on a mail is called spam."""

    weights: Tensor
    bias: Tensor
    threshold: float

    def odds(self, scores: Floats) -> Floats:
        joined: Floats = scores @ self.weights.double().numpy() + float(self.bias)
        return joined


class Trainer:
    """One reading of the data; fits on parts of it and scores the rest."""

    def __init__(self, mails: Mails, seed: int, progress: Progress) -> None:
        self.mails, self.seed, self.progress = mails, seed, progress
        bar = progress.add_task("encoding", total=-(-len(mails.ids) // BATCH))
        self.summaries = summaries(mails, BATCH, lambda: progress.advance(bar))
        self.bags = gram_bags(mails)
        self.fits = progress.add_task("training", total=2 * len(mails.families) + 1)

    def fit(self, rows: Indices) -> Parts:
        skimmer = fit_skimmer(self.mails, rows, self.summaries, self.seed)
        parts = Parts(skimmer, fit_grams(self.mails, rows, self.bags))
        self.progress.advance(self.fits)
        return parts

    def score(self, parts: Parts, rows: Indices) -> Unseen:
        skimmed = parts.skimmer(self.summaries[torch.from_numpy(rows)]).double().numpy()
        return Unseen(rows, np.stack([skimmed, gram_scores(parts.grams, self.bags, rows)], 1))

    def family(self, name: str) -> Indices:
        return np.flatnonzero(self.mails.family == name)

    def join(self, unseen: Sequence[Unseen]) -> Joined:
        """Weights, calibration and threshold from scores of families by models that never saw them."""
        scores = np.concatenate([one.scores for one in unseen])
        spam = np.concatenate([self.mails.spam[one.rows] for one in unseen])
        share = np.concatenate([balance(self.mails.spam[one.rows]) for one in unseen])
        joined = Joined(*fit_join(scores, spam, share), threshold=0.5)
        cuts = [cut(joined.odds(one.scores), self.mails.spam[one.rows], ALLOWED_FPR) for one in unseen]
        return replace(joined, threshold=float(1 / (1 + np.exp(-max(cuts)))))

    def judge(self, joined: Joined, unseen: Unseen) -> dict[str, float]:
        return figures(joined.odds(unseen.scores), self.mails.spam[unseen.rows], joined.threshold)


def balance(spam: Flags) -> Floats:
    """Weights under which both labels, and all families, count the same."""
    share: Floats = np.where(spam, 0.5 / max(1, spam.sum()), 0.5 / max(1, (~spam).sum()))
    return share


def leave_one_out(trainer: Trainer) -> tuple[dict[str, dict[str, float]], Joined]:
    """Figures of each family left out, and the join for a model of all families."""
    mails = trainer.mails
    alone: dict[tuple[str, str], Unseen] = {}  # (trained on, scored)
    for family in mails.families:
        parts = trainer.fit(trainer.family(family))
        for other in mails.families:
            if other != family:
                alone[family, other] = trainer.score(parts, trainer.family(other))
    judged, outer = {}, []
    for family in mails.families:
        parts = trainer.fit(np.flatnonzero(mails.family != family))
        unseen = trainer.score(parts, trainer.family(family))
        inner = [one for (trained, scored), one in alone.items() if family not in (trained, scored)]
        judged[family] = trainer.judge(trainer.join(inner), unseen)
        outer.append(unseen)
    return judged, trainer.join(outer)


def train(data: Path | None = None, out: Path | None = None, *, seed: int = 0) -> None:
    """Leave each family out in turn, then train on all but the held-out third; write weights, card and MODEL_CARD.md.

    data: folder of Avro containers of LabelledEmail.  out: folder to write, by default the shipped weights' own.
    """
    if data is None:
        raise Fatal(
            "training needs labelled e-mail: --data DIR with .avro containers (subject, body, label, corpus)"
        )
    folder = out or WEIGHTS
    mails = read_mails(data)
    with Progress() as progress:
        trainer = Trainer(mails, seed, progress)
        judged, joined = leave_one_out(trainer)
        parts = trainer.fit(np.flatnonzero(~mails.held))
        held = trainer.judge(joined, trainer.score(parts, np.flatnonzero(mails.held)))
    write(
        folder, parts, joined, {"left_out": judged, "held_out": held, "seed": seed, "mails": len(mails.ids)}
    )
    Console().print(table(json.loads((folder / "card.json").read_text())))


def write(folder: Path, parts: Parts, joined: Joined, found: Mapping[str, Any]) -> None:
    """Weights as fp16 safetensors, figures as JSON and as text."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        **{f"skimmer.{name}": tensor for name, tensor in parts.skimmer.state_dict().items()},
        "grams": parts.grams,
        "join.weight": joined.weights.unsqueeze(0),
        "join.bias": joined.bias.unsqueeze(0),
    }
    exact = ("skimmer.shift", "skimmer.scale")
    packed = {n: t.contiguous() if n in exact else t.half().contiguous() for n, t in weights.items()}
    save_file(packed, folder / "model.safetensors")
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    card = {"version": f"1-{digest[:8]}", "threshold": round(joined.threshold, 4), **found}
    (folder / "card.json").write_text(json.dumps(card, indent=2) + "\n")
    (folder / "MODEL_CARD.md").write_text(model_card(card))


def evaluate(
    data: Path | None = None, *, as_json: bool = False, retrain: bool = False, seed: int = 0
) -> dict[str, Any]:
    """Print the card's figures; with data measure again what the shipped weights never saw, and with `retrain` all.

    The figures of families left out belong to models that are not shipped: only `retrain` (minutes) makes them anew.
    """
    card: dict[str, Any] = json.loads((WEIGHTS / "card.json").read_text())
    if data is not None:
        mails = read_mails(data)
        card["held_out"] = judge_shipped(mails)
        if retrain:
            with Progress() as progress:
                card["left_out"], _ = leave_one_out(Trainer(mails, seed, progress))
    if as_json:
        Console().print_json(data=card)
    else:
        Console().print(table(card))
    return card


def judge_shipped(mails: Mails) -> dict[str, float]:
    """The shipped weights on the held-out third, in fp32 as a worker without bf16 would run them."""
    loaded = load_spam()
    rows = np.flatnonzero(mails.held)
    odds = np.zeros(len(rows))
    order = np.argsort([len(mails.ids[row]) for row in rows])
    for part in np.array_split(order, max(1, len(order) // 64)):
        with torch.inference_mode():
            odds[part] = loaded.model(padded(mails, rows[part], MAX_IDS)).double().numpy()
    return figures(odds, mails.spam[rows], loaded.threshold)
