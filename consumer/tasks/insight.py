"""Task `insight`: what is worth knowing in the results of the other tasks?

Books are kept for each source partition, in parts that are small, so that an event changes little.  What closes windows
is the time of the events; an insight comes with the event that brings it to light, one with each event.

    result ─admit─► counted in open windows ─closed─► judged ─┐
                └─► campaigns, objects: judged at once ───────┴─► waiting ─► an insight
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar

from consumer.errors import BadRecord, Fatal
from consumer.exits import Exit
from consumer.records import Event
from consumer.task import Budget, Device, Item, State, Task
from consumer.tasks.insight_campaigns import count_sketch
from consumer.tasks.insight_domains import close_domains, count_mail
from consumer.tasks.insight_objects import look_at_upload
from consumer.tasks.insight_partition import add_score, close_scores, close_volume, settle_offers
from consumer.tasks.insight_terms import Finding, Thresholds, fits
from consumer.windows import Windows, add, admit

__all__ = ["WEIGHTS", "InsightTask", "score_of"]

WEIGHTS = Path(__file__).parents[1] / "models" / "weights" / "insight"
MAX_TIME_MS = 253_402_300_799_999
"""The last millisecond of the year 9999."""
WAITING = 32
"""Findings that may wait for an event to come out with; further ones are left out."""
VERSIONS = 4
"""Versions of models whose scores are kept apart; of more, those that came first are forgotten."""


class InsightTask(Task):
    """An insight with a result that brings one to light; none with the others."""

    name = "insight"
    events = ("spam_verdict", "detection", "discount_decision", "recommendation", "answer")
    result = "insight"
    stateful = True
    budget: ClassVar[Budget] = Budget(max_batch_items=4_096)
    example: ClassVar[Event] = {
        "event_id": "20260301.4711@shop.example.org",
        "source_topic": "emails",
        "source_partition": 0,
        "source_offset": 4_711,
        "label": "spam",
        "probability": 0.98,
        "threshold": 0.93,
        "time": 1_772_366_400_000,
        "sender_domain": "shop.example.org",
        "sketch": 81_985_529_216_486_895,
        "model": "spam",
        "model_version": "1-62a091e0",
        "produced_at": 1_772_366_400_250,
    }

    def __init__(
        self,
        window_s: float | str = 3_600,
        lateness_s: float | str | None = None,
        clock: str = "event",
        weights: str | Path = WEIGHTS,
        **thresholds: float | str,
    ) -> None:
        """`window_s`: length of a window.  `lateness_s`: how far behind the latest one an event may come, a window at
        most; by default a twelfth of one.  `clock`: `event` (the event's time, or where it has none the result's) or
        `result` (when the result was made).  `weights`: a folder that `consumer train insight` wrote.  `thresholds`:
        fields of `Thresholds`.
        """
        window = _number("window_s", window_s, 1, 86_400)
        lateness = window / 12 if lateness_s is None else _number("lateness_s", lateness_s, 0, window)
        if clock not in ("event", "result"):
            raise Fatal(f"option clock is {clock!r}: it must be event or result", exit_code=Exit.USAGE)
        self._windows = Windows(round(window * 1000), round(lateness * 1000))
        self._clock = clock
        self._weights = Path(weights)
        self._wanted = {name: _number(name, value, 0, 1e9) for name, value in thresholds.items()}
        if unknown := ", ".join(self._wanted.keys() - asdict(Thresholds()).keys()):
            raise Fatal(
                f"the task insight has no option {unknown}; its thresholds are {', '.join(asdict(Thresholds()))}",
                exit_code=Exit.USAGE,
            )

    def load(self, device: Device) -> None:
        try:
            card = json.loads((self._weights / "card.json").read_text())
            self._enough = replace(Thresholds(**card["thresholds"]), **self._wanted)
            self._near = (int(card["near"]["bits"]), float(card["near"]["chance"]))
            self._references: Mapping[str, Sequence[int]] = card["references"]
            self.version = str(card["version"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Fatal(
                f"{self._weights} has no card.json that the task insight can use: {error!r}"
            ) from error

    def prepare(self, events: Sequence[Event], recalled: Sequence[Any]) -> Sequence[Item | BadRecord]:
        return [self._flaw(event) or Item(None) for event in events]

    def run(self, items: Sequence[None]) -> Sequence[None]:
        """Nothing is computed beside the events' order: see `finish`."""
        return items

    def finish(self, event: Event, output: None, state: State) -> Event | None:
        time, shared = self._time(event), state.partition
        clock = shared.setdefault("clock", {})
        begin = clock.get("first")
        counted = admit(clock, time, self._windows)
        found: list[Finding] = []
        if begin is not None and clock["first"] > begin:
            found += self._close(state, begin, clock["first"])
        if counted:
            found += self._count(event, time, state)
        waiting = shared.pop("waiting", []) + [finding.row() for finding in found]
        if not waiting:
            return None
        insight, *rest = waiting
        if rest:
            shared["waiting"] = rest[:WAITING]
        about = (
            state.topic,
            str(state.number),
            insight["kind"],
            insight["subject"],
            str(insight["window_start"]),
        )
        return {**insight, "id": "/".join(about), "late": clock["late"] + clock["ahead"]}

    def _time(self, event: Event) -> int:
        known = event.get("time") if self._clock == "event" else None
        return int(event["produced_at"] if known is None else known)

    def _flaw(self, event: Event) -> BadRecord | None:
        time = self._time(event)
        if 0 <= time <= MAX_TIME_MS:
            return None
        return BadRecord("bad_time", f"time {time} is not between the years 1970 and 9999", stage="prepare")

    def _count(self, event: Event, time: int, state: State) -> list[Finding]:
        """Take an event into the books."""
        shared, window, name = state.partition, self._windows.number(time), event["event_id"]
        volume = shared.setdefault("volume", {"open": {}, "past": [], "hot": False})
        add(volume["open"], window, (1,))
        self._take_score(event, window, state)
        found: list[Finding | None] = []
        if "sketch" in event:
            about: dict[str, Any] = {"spam": event["label"] == "spam", "time": time, "name": name}
            if event["sender_domain"]:
                count_mail(state, event["sender_domain"], window, **about)
            if event["sketch"] is not None:
                mails = _lately(volume, window, shared["clock"]["first"])
                args = (event["sketch"], window, mails, self._near, self._windows, self._enough)
                found.append(count_sketch(state, *args, **about))
        elif "seen" in event:
            found += look_at_upload(state, event, window, time, self._windows, self._enough)
        elif "settled" in event:
            book = shared.setdefault("drift", {})
            settled = list(filter(_is_sound, event["settled"]))
            found.append(settle_offers(book, settled, time, event["model"], self._enough))
        return [finding for finding in found if finding is not None]

    def _take_score(self, event: Event, window: int, state: State) -> None:
        score, model = score_of(event), f"{event['model']} {event['model_version']}"
        if score is None or not fits(model):
            return
        models: list[str] = state.partition.setdefault("models", [])
        if model not in models:
            models.append(model)
            for gone in models[:-VERSIONS]:
                state.part(f"scores/{gone}").clear()
            del models[:-VERSIONS]
        book = state.part(f"scores/{model}")
        if not book:
            book |= {"open": {}, "run": None, "own": None, "hot": False}
        add_score(book, window, score)

    def _close(self, state: State, begin: int, first: int) -> list[Finding]:
        """Judge the windows from `begin` to before `first`."""
        shared, windows, enough = state.partition, self._windows, self._enough
        found = close_domains(state, first, windows, enough)
        if "volume" in shared:
            found += close_volume(shared["volume"], begin, first, state.topic, windows, enough)
        for model in shared.get("models", ()):
            book, reference = state.part(f"scores/{model}"), self._references.get(model)
            found += close_scores(book, first, model, reference, windows, enough) if book else []
        return found


def score_of(event: Event) -> float | None:
    """The score by which a model's results are compared with its reference, 0 to 1; None where there is none."""
    if "seen" in event:
        return max((seen["score"] for seen in event["seen"]), default=0.0)
    if "buy_again" in event:
        first = [*event["buy_again"][:1], *event["something_new"][:1]]
        return max((product["score"] for product in first), default=0.0)
    score: float | None = event["relevance"] if "relevance" in event else event.get("probability")
    return score


def _lately(volume: Mapping[str, Any], window: int, first: int) -> float:
    """Results in this window and the one before, which may be closed."""
    before = volume["open"].get(str(window - 1))
    if before is None and window - 1 < first and volume["past"]:
        before = volume["past"][-1:]
    return float(volume["open"][str(window)][0] + (before or [0])[0])


def _is_sound(settled: Event) -> bool:
    offers, expected, redeemed = (settled[name] for name in ("offers", "expected", "redeemed"))
    return bool(0 <= redeemed <= offers and 0 <= expected <= offers)


def _number(name: str, given: float | str, least: float, most: float) -> float:
    try:
        number = float(given)
    except ValueError:
        number = math.nan
    if not least <= number <= most:
        raise Fatal(
            f"option {name} is {given!r}: it must be a number from {least:g} to {most:g}",
            exit_code=Exit.USAGE,
        )
    return number
