"""References of the task `insight`, and its figures: anomalies put into real streams.

`train` takes from real data what the shipped thresholds cannot know: how near sketches of unrelated mails are by
chance, and how the spam model's scores are distributed.  `evaluate` puts anomalies of every kind into streams and looks
which are told, when, and what else is told; the undisturbed streams say how often there is a false alarm.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from consumer.errors import Fatal
from consumer.exits import Exit
from consumer.records import Event
from consumer.task import Device
from consumer.tasks.insight import WEIGHTS, InsightTask, score_of
from consumer.tasks.insight_campaigns import BITS
from consumer.tasks.insight_partition import add_score
from consumer.tasks.insight_terms import Thresholds
from consumer.train.insight_card import model_card, table
from consumer.train.insight_streams import mails, variants, verdicts
from consumer.train.insight_trials import Material, measured

__all__ = ["evaluate", "histogram", "near", "train"]

BY_CHANCE = 5e-4
"""Largest chance that sketches of unrelated mails count as near."""
PAIRS = 400_000
LEAST_WORDS = 60
VARIED, COPIES = 30, 30
"""Mails that are made into campaigns, and the mails of each."""


def train(data: Path | None = None, out: Path | None = None, *, seed: int = 0) -> None:
    """Measure references and figures, write card and MODEL_CARD.md; minutes.

    out: folder to write, by default the shipped one.  The data is that of packages: `data` must be None.
    """
    material = _material(data, seed)
    known = [row for row in material.verdicts if row["sketch"] is not None]
    bits, chance = near([row["sketch"] for row in known], np.random.default_rng(seed))
    spam = material.verdicts[0]
    card: dict[str, Any] = {
        "thresholds": asdict(Thresholds()),
        "near": {"bits": bits, "chance": chance},
        "references": {f"{spam['model']} {spam['model_version']}": histogram(material.verdicts)},
    }
    digest = hashlib.sha256(json.dumps(card, sort_keys=True).encode()).hexdigest()
    card = {"version": f"1-{digest[:8]}", "seed": seed, "mails": len(material.verdicts), **card}
    folder = out or WEIGHTS
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder, card)
    card["figures"] = measured(_task(folder), material, seed)
    _write(folder, card)
    Console().print(table(card))


def evaluate(data: Path | None = None, *, as_json: bool = False, seed: int = 0) -> dict[str, Any]:
    """Measure the shipped thresholds again, and print precision, recall, delay and false alarms of each kind."""
    card: dict[str, Any] = json.loads((WEIGHTS / "card.json").read_text())
    card["figures"] = measured(_task(WEIGHTS), _material(data, seed), seed)
    if as_json:
        Console().print_json(data=card)
    else:
        Console().print(table(card))
    return card


def near(sketches: Sequence[int], dice: np.random.Generator) -> tuple[int, float]:
    """The most bits in which sketches may differ so that at most BY_CHANCE of unrelated pairs are as near, and their
    share."""
    rows = np.array(sketches, np.int64).view(np.uint8).reshape(-1, BITS // 8)
    one, other = (dice.integers(0, len(rows), PAIRS) for _ in range(2))
    pairs = np.flatnonzero(one != other)
    apart = np.unpackbits(rows[one[pairs]] ^ rows[other[pairs]], axis=1).sum(1)
    shares = np.bincount(apart, minlength=BITS + 1).cumsum() / len(apart)
    bits = max(int(np.searchsorted(shares, BY_CHANCE, side="right")) - 1, 0)
    return bits, float(f"{max(shares[bits], 1 / len(apart)):.3g}")


def histogram(rows: Sequence[Event]) -> list[int]:
    """Scores of results in the bins of `score_shift`."""
    book: dict[str, Any] = {"open": {}}
    for row in rows:
        score = score_of(row)
        if score is not None:
            add_score(book, 0, score)
    bins: list[int] = book["open"]["0"]
    return bins


def _task(folder: Path) -> InsightTask:
    task = InsightTask(weights=folder)
    task.load(Device())
    return task


def _material(data: Path | None, seed: int) -> Material:
    if data is not None:
        raise Fatal(
            "the task insight is judged on SpamAssassin's mails and the Complete Journey data, which their packages "
            "bring; leave --data out",
            exit_code=Exit.USAGE,
        )
    dice = np.random.default_rng(seed)
    letters = mails()
    long = [letter for letter in letters if len(letter["body"].split()) >= LEAST_WORDS]
    chosen = [long[place] for place in dice.choice(len(long), VARIED, replace=False).tolist()]
    made = [variants(letter, COPIES, dice) for letter in chosen]
    every = [*letters, *(copy for copies in made for copy in copies)]
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("verdicts on mails", total=len(every))
        found = verdicts(every, lambda done: progress.advance(bar, done))
    copies = found[len(letters) :]
    return Material(found[: len(letters)], [copies[n : n + COPIES] for n in range(0, len(copies), COPIES)])


def _write(folder: Path, card: dict[str, Any]) -> None:
    (folder / "card.json").write_text(json.dumps(card, indent=2) + "\n")
    if "figures" in card:
        (folder / "MODEL_CARD.md").write_text(model_card(card))
