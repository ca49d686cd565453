"""The kinds whose books are those of the whole partition: `volume`, `score_shift` and `redemption_drift`.

volume: {"open": {window: [results]}, "past": numbers of the last windows, "hot": told and not over}
scores: {"open": {window: histogram}, "run": [first window, last window, histogram] | null, "own": reference | null,
        "hot"}
drift:  {"since": time, "offers": n, "expected": x, "redeemed": n, "hot"}
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from statistics import median
from typing import Any

from consumer.records import Event
from consumer.tasks.insight_chance import binomial_off, normal_off, stability
from consumer.tasks.insight_terms import Finding, Thresholds
from consumer.windows import DAY_MS, Windows, add, closed

__all__ = ["EDGES", "add_score", "close_scores", "close_volume", "settle_offers"]

EDGES = (0.01, 0.03, 0.1, 0.2, 0.35, 0.65, 0.8, 0.9, 0.97, 0.99)
"""Bounds of the eleven bins of a score from 0 to 1."""
RECENT = 24
PAST = 7 * 24
SAME_TIME = 3
"""Days of which the same time of day must be known before it is compared."""
CALM = 0.5


def close_volume(
    book: dict[str, Any], begin: int, first: int, subject: str, windows: Windows, enough: Thresholds
) -> list[Finding]:
    """Judge the windows from `begin` to before `first`, empty ones as well."""
    sums = dict(closed(book["open"], first))
    found = []
    for number in range(max(begin, first - PAST), first):
        count = sums.get(number, [0])[0]
        finding = _volume(book, number, count, subject, windows, enough)
        book["past"] = [*book["past"], count][-PAST:]
        if finding is not None:
            found.append(finding)
    return found


def _volume(
    book: dict[str, Any], number: int, count: int, subject: str, windows: Windows, enough: Thresholds
) -> Finding | None:
    past: list[int] = book["past"]
    if len(past) < enough.volume_windows:
        return None
    bands = [_band(past[-RECENT:])]
    day = DAY_MS // windows.window_ms
    same = past[-day::-day] if 0 < day < PAST else []
    if len(same) >= SAME_TIME:
        bands.append(_band(same))
    spread = max(spread for _, spread in bands)
    usual, _ = min(bands, key=lambda band: abs(count - band[0]))
    z = 2 * (math.sqrt(count + 0.375) - math.sqrt(usual + 0.375)) / math.sqrt(spread)
    factor = (count + 0.5) / (usual + 0.5)
    one_side = len({count > middle for middle, _ in bands}) == 1
    off = max(factor, 1 / factor)
    if off < 1 + (enough.volume_factor - 1) * CALM:
        book["hot"] = False
    if (
        book["hot"]
        or off < enough.volume_factor
        or abs(count - usual) < enough.volume_results
        or not one_side
    ):
        return None
    chance = normal_off(z)
    if chance > enough.chance:
        return None
    book["hot"] = True
    start = windows.begin(number)
    how = "more" if factor > 1 else "fewer"
    return Finding(
        "volume", subject, f"{count:,} results in a window, {how} than the usual {usual:,.0f}",
        factor, count, usual, count, 1 - chance, start, start, windows.begin(number + 1),
    )  # fmt: skip


def _band(counts: Sequence[int]) -> tuple[float, float]:
    """Usual number, and how many times more than a Poisson number it spreads; both robust."""
    middle = median(counts)
    deviation = 1.4826 * median(abs(count - middle) for count in counts)
    return middle, max(1.0, deviation**2 / max(1.0, middle))


def add_score(book: dict[str, Any], window: int, score: float) -> None:
    """One score."""
    bins = [0] * (len(EDGES) + 1)
    bins[bisect_right(EDGES, score)] = 1
    add(book["open"], window, bins)


def close_scores(
    book: dict[str, Any], first: int, subject: str, reference: Sequence[int] | None, windows: Windows,
    enough: Thresholds,
) -> list[Finding]:  # fmt: skip
    """Judge the scores of closed windows, as soon as there are enough.

    Without a reference the first ones become it.
    """
    found = []
    for number, bins in closed(book["open"], first):
        begin, _, sums = book["run"] or [number, number, [0] * len(bins)]
        run = book["run"] = [begin, number, [a + b for a, b in zip(sums, bins, strict=True)]]
        known = reference or book["own"]
        if sum(run[2]) < (enough.shift_scores if known else enough.shift_reference):
            continue
        book["run"] = None
        if known is None:
            book["own"] = run[2]
        elif (finding := _shift(book, run, known, subject, windows, enough)) is not None:
            found.append(finding)
    return found


def _shift(
    book: dict[str, Any], run: Sequence[Any], known: Sequence[int], subject: str, windows: Windows,
    enough: Thresholds,
) -> Finding | None:  # fmt: skip
    begin, last, bins = run
    index, chance = stability(known, bins)
    if index < enough.shift_index * CALM:
        book["hot"] = False
    if book["hot"] or index < enough.shift_index or chance > enough.chance:
        return None
    book["hot"] = True
    count, start = sum(bins), windows.begin(begin)
    shares = [
        (c / count - k / sum(known), place) for place, (c, k) in enumerate(zip(bins, known, strict=True))
    ]
    grown = max(shares)[1]
    bounds = (0.0, *EDGES, 1.0)
    return Finding(
        "score_shift", subject,
        f"the scores of {subject} have moved: index {index:.2f} over {count:,} scores; most has come to scores from "
        f"{bounds[grown]:g} to {bounds[grown + 1]:g}",
        index, index, 0.0, count, 1 - chance, start, start, windows.begin(last + 1),
    )  # fmt: skip


def settle_offers(
    book: dict[str, Any], settled: Sequence[Event], time: int, subject: str, enough: Thresholds
) -> Finding | None:
    """Offers that came to their end.  They are judged together as soon as there are enough."""
    if not settled:
        return None
    book.setdefault("since", time)
    for name in ("offers", "expected", "redeemed"):
        book[name] = round(book.get(name, 0) + sum(each[name] for each in settled), 6)
    offers, expected, redeemed = int(book["offers"]), book["expected"], int(book["redeemed"])
    if offers < enough.drift_offers:
        return None
    since, hot = book["since"], book.get("hot", False)
    book.clear()
    off, chance = abs(redeemed - expected) / max(expected, 1e-9), binomial_off(redeemed, offers, expected)
    book["hot"] = hot and off >= enough.drift_share * CALM
    if book["hot"] or off < enough.drift_share or chance > enough.chance:
        return None
    book["hot"] = True
    return Finding(
        "redemption_drift", subject,
        f"{redeemed} of {offers} offers were redeemed where {subject} expected {expected:.1f}",
        redeemed / max(expected, 1e-9), redeemed / offers, expected / offers, offers, 1 - chance, since, since, time,
    )  # fmt: skip
