"""Windows of event time with allowed lateness, in dicts of what JSON can say.  Pure: no clock on the wall.

    time ─admit─► may it be counted? ─add─► open window ─clock passes its end + lateness─► closed, in order

Order within the lateness does not matter: a window is a sum, and is looked at once, when nothing can be added any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["DAY_MS", "Windows", "add", "admit", "closed"]

DAY_MS = 86_400_000
FAR_WINDOWS = 24
EARLY = 3
"""So many events one after the other that are far ahead of the clock prove that time has passed: one may be wrong."""
LOST = 100
"""So many that are far behind it prove that the clock was wrong."""


@dataclass(frozen=True, slots=True)
class Windows:
    """Tumbling windows, numbered since 1970.  `lateness_ms`: how far behind the latest event one may come."""

    window_ms: int
    lateness_ms: int

    def number(self, time_ms: int) -> int:
        return time_ms // self.window_ms

    def begin(self, number: int) -> int:
        """First ms of a window; of the number after a window, its end."""
        return number * self.window_ms

    @property
    def far_ms(self) -> int:
        """How far from the clock a time is doubtful."""
        return max(DAY_MS, FAR_WINDOWS * self.window_ms)


def admit(clock: dict[str, Any], time_ms: int, windows: Windows) -> bool:
    """Move the clock on to an event's time; False where the event is not to be counted, and `clock` says so.

    clock, in the beginning {}: {"now": largest time, "first": first open window, "late": left out so far as too late,
    "ahead": as too far ahead, "early", "lost": events one after the other that are far ahead of it, far behind it}.
    """
    if not clock:
        clock |= {"late": 0, "ahead": 0, "early": 0, "lost": 0}
        _begin(clock, time_ms, windows)
    clock["early"] = clock["early"] + 1 if time_ms > clock["now"] + windows.far_ms else 0
    clock["lost"] = clock["lost"] + 1 if time_ms < clock["now"] - windows.far_ms else 0
    if clock["lost"] >= LOST:
        _begin(clock, time_ms, windows)
    if 0 < clock["early"] < EARLY:
        clock["ahead"] += 1
        return False
    clock["now"] = max(clock["now"], time_ms)
    clock["first"] = max(clock["first"], windows.number(clock["now"] - windows.lateness_ms))
    late = windows.number(time_ms) < clock["first"]
    clock["late"] += late
    return not late


def _begin(clock: dict[str, Any], time_ms: int, windows: Windows) -> None:
    clock |= {"now": time_ms, "first": windows.number(time_ms - windows.lateness_ms), "lost": 0}


def add(windows: dict[str, Any], number: int, amounts: Sequence[float]) -> None:
    """Add to the sums of an open window."""
    sums = windows.get(str(number))
    windows[str(number)] = (
        list(amounts) if sums is None else [a + b for a, b in zip(sums, amounts, strict=True)]
    )


def closed(windows: dict[str, Any], first: int) -> list[tuple[int, list[Any]]]:
    """Take out the windows before `first`, the oldest first."""
    over = sorted(int(number) for number in windows if int(number) < first)
    return [(number, windows.pop(str(number))) for number in over]
