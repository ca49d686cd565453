"""Anomalies of each kind put into real streams, and what the task `insight` says of them.

Found is an anomaly when an insight of its kind and subject comes out with a window that touches it; whatever else is
told of the kind in a disturbed stream is false.  Delay counts from the anomaly's first event.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from consumer.records import Event
from consumer.tasks.insight import InsightTask
from consumer.train.insight_streams import (
    BEGIN_MS,
    HOUR_MS,
    Injected,
    Told,
    baskets,
    detection,
    offers,
    replay,
    stream_of,
    visits,
)

__all__ = ["Material", "measured", "score"]

DAYS = 4
TRIALS = 20
MAIL_DAYS = 20
"""Length of the undisturbed stream of mails."""
DOMAINS = 8
"""The domain that turns is one of so many that send most."""
OFFER_TRIALS = 40
STRANGE = "umbrella"

Stream = tuple[list[Event], list[Injected]]


@dataclass(frozen=True, slots=True)
class Material:
    """Verdicts on real mails, and on groups of nearly equal ones."""

    verdicts: list[Event]
    campaigns: list[list[Event]]


def measured(task: InsightTask, material: Material, seed: int) -> dict[str, Any]:
    """Figures of every kind; see MODEL_CARD.md."""
    figures: dict[str, Any] = {}
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("streams", total=3 * TRIALS + 4)
        calm = replay(task, "mails", stream_of(material.verdicts, MAIL_DAYS, np.random.default_rng(seed)))
        progress.advance(bar)
        for kind, spoil in (("spam_share", _turn), ("campaign", _campaign), ("score_shift", _shift)):
            found = []
            for trial in range(TRIALS):
                found.append(_mail_trial(task, material, spoil, seed + 1 + trial))
                progress.advance(bar)
            figures[kind] = score(kind, found) | _false_alarms(calm, kind, MAIL_DAYS)
        for kind, measure in (("volume", _volume), ("redemption_drift", _drift), ("new_object", _objects)):
            figures[kind] = measure(task, seed)
            progress.advance(bar)
    return figures


def score(kind: str, trials: Iterable[tuple[list[Event], list[Injected], list[Told]]]) -> dict[str, Any]:
    """Precision, recall and median delay over (stream, anomalies, what was told) of each trial."""
    injected = right = told_at_all = 0
    hours, events = [], []
    for stream, anomalies, told in trials:
        mine = [each for each in told if each.insight["kind"] == kind]
        times = np.array([event["time"] for event in stream])
        told_at_all += len(mine)
        for anomaly in anomalies:
            hits = [each for each in mine if _touches(each.insight, anomaly)]
            injected += 1
            right += bool(hits)
            told_at_all -= max(0, len(hits) - 1)  # told again is not wrong
            if hits:
                hours.append((hits[0].time - anomaly.begin) / HOUR_MS)
                events.append(hits[0].place - int(np.searchsorted(times, anomaly.begin)))
    return {
        "injected": injected,
        "recall": round(right / injected, 3),
        "precision": round(right / told_at_all, 3) if told_at_all else None,
        "delay_hours": round(median(hours), 2) if hours else None,
        "delay_events": round(median(events)) if events else None,
    }


def _touches(insight: Event, anomaly: Injected) -> bool:
    same = anomaly.subject is None or insight["subject"] == anomaly.subject
    return bool(same and insight["window_start"] < anomaly.end and insight["window_end"] > anomaly.begin)


def _false_alarms(calm: Sequence[Told], kind: str, days: float) -> dict[str, Any]:
    count = sum(each.insight["kind"] == kind for each in calm)
    return {"false_alarms": count, "days": round(days, 1), "false_alarms_per_day": round(count / days, 4)}


def _mail_trial(
    task: InsightTask, material: Material, spoil: Any, seed: int
) -> tuple[list[Event], list[Injected], list[Told]]:
    dice = np.random.default_rng(seed)
    stream = stream_of(material.verdicts, DAYS, dice)
    begin = (
        BEGIN_MS
        + int(dice.integers((DAYS - 2) * 24, (DAYS - 1) * 24)) * HOUR_MS
        + int(dice.integers(HOUR_MS))
    )
    stream, anomalies = spoil(stream, begin, material, dice)
    return stream, anomalies, replay(task, "mails", stream)


def _merged(stream: Iterable[Event], more: Iterable[Event]) -> list[Event]:
    return sorted([*stream, *more], key=lambda event: (event["time"], event["event_id"]))


def _turn(stream: list[Event], begin: int, material: Material, dice: np.random.Generator) -> Stream:
    """For six hours a domain sends real spam beside its own mails, ten an hour."""
    names = [row["sender_domain"] for row in material.verdicts if row["sender_domain"]]
    good = [row for row in material.verdicts if row["label"] == "ham" and row["sender_domain"]]
    often = sorted({row["sender_domain"] for row in good}, key=lambda name: (-names.count(name), name))
    domain = often[dice.integers(DOMAINS)]
    spam = [row for row in material.verdicts if row["label"] == "spam"]
    times = np.sort(dice.integers(begin, begin + 6 * HOUR_MS, 60)).tolist()
    more = [
        {**spam[dice.integers(len(spam))], "sender_domain": domain, "time": time, "event_id": f"turned-{n}"}
        for n, time in enumerate(times)
    ]
    return _merged(stream, more), [Injected("spam_share", domain, times[0], times[-1])]


def _campaign(stream: list[Event], begin: int, material: Material, dice: np.random.Generator) -> Stream:
    """Within an hour come thirty nearly equal mails, made of a real one."""
    copies = material.campaigns[dice.integers(len(material.campaigns))]
    times = np.sort(dice.integers(begin, begin + HOUR_MS, len(copies))).tolist()
    more = [{**copy, "time": time} for copy, time in zip(copies, times, strict=True)]
    return _merged(stream, more), [Injected("campaign", None, times[0], times[-1])]


def _shift(stream: list[Event], begin: int, material: Material, dice: np.random.Generator) -> Stream:
    """For a day the model is as unsure as one that has lost half of what it knows: its log-odds are halved."""
    end = begin + 24 * HOUR_MS
    made = []
    for event in stream:
        if begin <= event["time"] < end:
            odds = np.log(max(event["probability"], 1e-6) / max(1 - event["probability"], 1e-6)) / 2
            event = {**event, "probability": float(1 / (1 + np.exp(-odds)))}
        made.append(event)
    return made, [Injected("score_shift", None, begin, end)]


def _volume(task: InsightTask, seed: int) -> dict[str, Any]:
    """Every ten days of the year, by turns: three times as many baskets for three hours, or none for six; both from
    noon on, when there are enough to miss."""
    calm = visits()
    first, last = calm[0]["time"], calm[-1]["time"]
    days = (last - first) / (24 * HOUR_MS)
    told = replay(task, "visits", calm)
    begins = [
        first // (24 * HOUR_MS) * 24 * HOUR_MS + (day * 24 + 12) * HOUR_MS
        for day in range(20, int(days) - 1, 10)
    ]
    stream, anomalies = list(calm), []
    for turn, begin in enumerate(begins):
        end = begin + (6 if turn % 2 else 3) * HOUR_MS
        touched = [event for event in stream if begin <= event["time"] < end]
        if turn % 2:
            stream = [event for event in stream if not begin <= event["time"] < end]
        else:
            copies = [{**event, "event_id": f"{event['event_id']}-{n}"} for n in (1, 2) for event in touched]
            stream = _merged(stream, copies)
        anomalies.append(Injected("volume", None, begin, end))
    found = score("volume", [(stream, anomalies, replay(task, "visits", stream))])
    return found | _false_alarms(told, "volume", days)


def _drift(task: InsightTask, seed: int) -> dict[str, Any]:
    """In the second half of the offers redemptions are half, or once and a half, as many as they were."""
    trials, calm, days = [], 0, 0.0
    for trial in range(OFFER_TRIALS):
        stream = list(offers(np.random.default_rng(seed + trial), 0.5 if trial % 2 else 1.5))
        middle = stream[len(stream) // 2]["time"]
        anomaly = Injected("redemption_drift", None, middle, stream[-1]["time"])
        trials.append((stream, [anomaly], replay(task, "offers", stream)))
        quiet = list(offers(np.random.default_rng(seed + trial)))
        calm += len(replay(task, "offers", quiet))
        days += (quiet[-1]["time"] - quiet[0]["time"]) / (24 * HOUR_MS)
    about = {"false_alarms": calm, "days": round(days, 1), "false_alarms_per_day": round(calm / days, 4)}
    return score("redemption_drift", trials) | about


def _objects(task: InsightTask, seed: int) -> dict[str, Any]:
    """In the second half of the year each household once buys something that no household of the data ever does."""
    calm, dice = baskets(), np.random.default_rng(seed)
    first, last = calm[0]["time"], calm[-1]["time"]
    days = (last - first) / (24 * HOUR_MS)
    told = [each for each in replay(task, "uploads", calm) if each.insight["kind"] == "new_object"]
    more, anomalies = [], []
    for user in sorted({event["user"] for event in calm}):
        time = int(dice.integers((first + last) // 2, last))
        event = detection(time, f"strange-{user}", user)
        event["seen"] = [{"label": STRANGE, "score": 0.7, "most": 1}]
        more.append(event)
        anomalies.append(Injected("new_object", f"{user}/{STRANGE}", time, time + 1))
    stream = _merged(calm, more)
    found = score("new_object", [(stream, anomalies, replay(task, "uploads", stream))])
    chances = [1 - each.insight["sure"] for each in told]
    return (
        found
        | _false_alarms(told, "new_object", days)
        | {
            "users": len(anomalies),
            "mean_stated_chance": round(float(np.mean(chances)), 3) if chances else None,
        }
    )
