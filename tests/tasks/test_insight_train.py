"""References and figures of the task `insight`: how they are measured, on made-up streams."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from consumer.errors import Fatal
from consumer.records import Event
from consumer.task import Device
from consumer.tasks.insight import WEIGHTS, InsightTask
from consumer.train import insight, insight_trials
from consumer.train.insight_card import model_card
from consumer.train.insight_streams import (
    BEGIN_MS,
    HOUR_MS,
    Injected,
    Told,
    decision,
    detection,
    stream_of,
    variants,
)
from consumer.train.insight_trials import Material, measured, score

KINDS = ("spam_share", "campaign", "score_shift", "volume", "redemption_drift", "new_object")


def verdict(number: int, dice: np.random.Generator) -> Event:
    spam = number % 5 == 0
    return {
        "event_id": f"mail-{number:04}-of-the-tests", "label": "spam" if spam else "ham", "threshold": 0.9,
        "probability": 0.99 if spam else float(dice.choice([0.002, 0.02, 0.05])), "produced_at": 0,
        "sender_domain": f"d{number % 9}.example", "sketch": int(dice.integers(-(1 << 63), 1 << 63)),
        "model": "spam", "model_version": "made-up",
    }  # fmt: skip


@pytest.fixture
def material(monkeypatch: pytest.MonkeyPatch) -> Material:
    """Mails, baskets and offers that are made up; few trials."""
    dice = np.random.default_rng(0)
    known = [verdict(n, dice) for n in range(600)]
    copies = [
        {**known[1], "event_id": f"copy-{n}", "sketch": known[1]["sketch"] ^ (1 << n)} for n in range(30)
    ]
    days = [BEGIN_MS + (BEGIN_MS and day * 24 * HOUR_MS) for day in range(45)]
    visits = [decision(day + n * HOUR_MS // 40, f"b-{day}-{n}") for day in days for n in range(24 * 40)]
    baskets = [detection(day + user, f"u-{day}-{user}", f"user-{user}") for day in days for user in range(5)]
    for event in baskets:
        event["seen"] = [{"label": "cat", "score": 0.7, "most": 1}]
    monkeypatch.setattr(insight_trials, "visits", lambda: list(visits))
    monkeypatch.setattr(insight_trials, "baskets", lambda: list(baskets))
    monkeypatch.setattr(insight_trials, "offers", offers)
    for name, value in {"TRIALS": 2, "MAIL_DAYS": 2, "OFFER_TRIALS": 2}.items():
        monkeypatch.setattr(insight_trials, name, value)
    return Material(known, [copies])


def offers(dice: np.random.Generator, change: float = 1.0) -> list[Event]:
    chances = [0.2] * 100 + [0.2 * change] * 100
    return [
        decision(
            BEGIN_MS + n * HOUR_MS,
            f"d-{n}",
            [{"campaign": "c", "offers": 10, "expected": 2.0, "redeemed": int(dice.binomial(10, chance))}],
        )
        for n, chance in enumerate(chances)
    ]


def test_anomalies_of_every_kind_are_put_in_and_looked_for(material: Material) -> None:
    task = InsightTask()
    task.load(Device())
    figures = measured(task, material, seed=0)
    assert tuple(figures) == KINDS
    assert {kind: row["injected"] for kind, row in figures.items()} == {
        "spam_share": 2, "campaign": 2, "score_shift": 2, "volume": 3, "redemption_drift": 2, "new_object": 5
    }  # fmt: skip
    for kind in ("spam_share", "campaign", "volume", "new_object"):
        assert figures[kind]["recall"] == 1.0, kind
    assert figures["campaign"]["delay_events"] > 0
    card = {**json.loads((WEIGHTS / "card.json").read_text()), "figures": figures}
    assert all(f"| {kind} |" in model_card(card) for kind in KINDS)


def test_figures_of_what_was_told() -> None:
    stream = [{"time": n} for n in range(100)]
    anomalies = [Injected("volume", None, 20, 40), Injected("volume", "b", 60, 80)]

    def told(begin: int, subject: str, at: int, kind: str = "volume") -> Told:
        return Told(
            {"kind": kind, "subject": subject, "window_start": begin, "window_end": begin + 10}, at, at
        )

    hits = [
        told(30, "a", 45),
        told(35, "a", 46),
        told(60, "a", 71),
        told(0, "a", 11),
        told(60, "b", 75, "campaign"),
    ]
    found = score("volume", [(stream, anomalies, hits)])
    assert (found["injected"], found["recall"], found["precision"]) == (2, 0.5, 0.333)
    assert (found["delay_events"], found["delay_hours"]) == (25, round(25 / HOUR_MS, 2))
    assert score("volume", [(stream, anomalies, [])])["precision"] is None


def test_how_near_unrelated_sketches_are() -> None:
    dice = np.random.default_rng(1)
    far = dice.integers(-(1 << 63), 1 << 63, 800).tolist()
    bits, chance = insight.near(far, np.random.default_rng(0))
    assert 14 <= bits <= 20  # of 64 fair bits one pair in 2,000 differs in 18 or fewer
    assert chance <= 5e-4
    assert insight.near([*far, *[far[0]] * 80], np.random.default_rng(0))[0] == 0


def test_a_stream_is_drawn_from_what_is_known(material: Material) -> None:
    stream = stream_of(material.verdicts, 2, np.random.default_rng(0))
    assert stream == stream_of(material.verdicts, 2, np.random.default_rng(0))
    assert len({event["event_id"] for event in stream}) == len(stream)
    assert [event["time"] for event in stream] == sorted(event["time"] for event in stream)


def test_variants_are_nearly_equal() -> None:
    letter: Any = {"id": "m", "body": " ".join(f"word{n}" for n in range(100)), "from": "a@b.c"}
    made = variants(letter, 5, np.random.default_rng(0))
    assert len({each["body"] for each in made}) == len({each["id"] for each in made}) == 5
    for each in made:
        assert len(set(letter["body"].split()) & set(each["body"].split())) >= 97


def test_training_writes_a_card_that_the_task_reads(
    material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"injected": 1, "recall": 1.0, "precision": None, "delay_hours": 0.5, "delay_events": 3}
    row |= {
        "false_alarms": 0,
        "days": 1.0,
        "false_alarms_per_day": 0.0,
        "users": 1,
        "mean_stated_chance": 0.1,
    }
    monkeypatch.setattr(insight, "_material", lambda data, seed: material)
    monkeypatch.setattr(insight, "measured", lambda task, found, seed: dict.fromkeys(KINDS, row))
    insight.train(out=tmp_path)
    task = InsightTask(weights=tmp_path)
    task.load(Device())
    card = json.loads((tmp_path / "card.json").read_text())
    assert task.version == card["version"] != "0"
    assert sum(card["references"]["spam made-up"]) == 600
    assert (tmp_path / "MODEL_CARD.md").read_text().startswith(f"# Model card: insight {card['version']}")
    assert insight.evaluate(as_json=True)["figures"]["volume"] == row


def test_data_of_ones_own_is_refused(tmp_path: Path) -> None:
    for door in (insight.train, insight.evaluate):
        with pytest.raises(Fatal, match="leave --data out"):
            door(data=tmp_path)
