"""Kind `campaign`: many nearly equal mails, by the sketches of the spam model's encoder.

Row of a group of mails, under the sketch of its first one: {"seen": last window, "at": last time, "open": {window:
[mails, spam]}, "ids": first mails, [time, id] each, "told": whether it was told}.

Told as soon as two neighbouring windows hold enough, so in another order another mail may bring it to light.
"""

from __future__ import annotations

from typing import Any

from consumer.task import State
from consumer.tasks.insight_chance import binomial_above
from consumer.tasks.insight_terms import Finding, Thresholds, earliest
from consumer.windows import Windows, add

__all__ = ["BITS", "count_sketch"]

BITS = 64
PLACE_BITS = 4
"""The uppermost bits say in which of 16 parts a group is: of nearly equal mails a few get into a group of their own."""
ROWS = 32
"""Groups in one part, of 512 in a partition.  Without room single mails go first, of these the oldest."""
HEAVY = 3
"""Groups of so many mails are not told apart when one must go."""
FORGOTTEN_WINDOWS = 2
TOLD_WINDOWS = 24
"""How long a group is remembered without a mail; one that was told longer, so that it is not told again."""


def count_sketch(
    state: State, sketch: int, window: int, mails: float, near: tuple[int, float],
    windows: Windows, enough: Thresholds, *, spam: bool, time: int, name: str,
) -> Finding | None:  # fmt: skip
    """One mail.

    mails: of this window and the one before, of all groups.  near: bits in which nearly equal sketches differ at most,
    and the chance that two mails that have nothing to do with each other do.
    """
    sketch &= (1 << BITS) - 1
    rows = state.part(f"campaigns/{sketch >> (BITS - PLACE_BITS)}")
    group = _nearest(rows, sketch, near[0])
    if group is None:
        _make_room(rows, window)
        group = f"{sketch:016x}"
        rows[group] = {"seen": window, "at": time, "open": {}, "ids": [], "told": False}
    row = rows[group]
    row["seen"], row["at"] = max(row["seen"], window), max(row["at"], time)
    row["open"] = {number: sums for number, sums in row["open"].items() if int(number) >= row["seen"] - 1}
    if window >= row["seen"] - 1:
        add(row["open"], window, (1, int(spam)))
        earliest(row["ids"], time, name)
    row["ids"] = [each for each in row["ids"] if windows.number(each[0]) >= row["seen"] - 1]
    return _judge(group, row, mails, near[1], windows, enough)


def _nearest(rows: dict[str, Any], sketch: int, distance: int) -> str | None:
    """The nearest group that is near enough; of equals the one with the smaller sketch."""
    found = min(((int(name, 16) ^ sketch).bit_count(), name) for name in rows) if rows else (BITS, "")
    return found[1] if found[0] <= distance else None


def _make_room(rows: dict[str, Any], window: int) -> None:
    for name, row in list(rows.items()):
        if row["seen"] < window - (TOLD_WINDOWS if row["told"] else FORGOTTEN_WINDOWS):
            del rows[name]
    while len(rows) >= ROWS:
        del rows[min(rows, key=lambda name: (_weight(rows[name]), rows[name]["at"], name))]


def _weight(row: dict[str, Any]) -> int:
    return HEAVY + 1 if row["told"] else min(HEAVY, sum(mails for mails, _ in row["open"].values()))


def _judge(
    group: str, row: dict[str, Any], mails: float, by_chance: float, windows: Windows, enough: Thresholds
) -> Finding | None:
    count, spam = (sum(sums[part] for sums in row["open"].values()) for part in (0, 1))
    if row["told"] or count < enough.campaign_mails:
        return None
    groups = ROWS << PLACE_BITS
    chance = min(1.0, groups * binomial_above(count - 1, max(count - 1, round(mails) - 1), by_chance))
    if chance > enough.chance:
        return None
    row["told"] = True
    numbers = sorted(map(int, row["open"]))
    since, start = row["ids"][0][0] if row["ids"] else windows.begin(numbers[0]), windows.begin(numbers[0])
    return Finding(
        "campaign", group,
        f"{count} nearly equal mails within {_minutes(windows, numbers)}; {spam / count:.0%} of them are called spam",
        count, count, 1 + (mails - 1) * by_chance, count, 1 - chance, since, start, windows.begin(numbers[-1] + 1),
        [name for _, name in row["ids"]],
    )  # fmt: skip


def _minutes(windows: Windows, numbers: list[int]) -> str:
    minutes = (windows.begin(numbers[-1] + 1) - windows.begin(numbers[0])) / 60_000
    return f"{minutes:.0f} minutes" if minutes >= 2 else f"{minutes * 60:.0f} seconds"
