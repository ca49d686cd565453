"""Moments as people write them: `2h` ago, or a date with or without a time."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime

from consumer.errors import Fatal
from consumer.exits import Exit

__all__ = ["moment_ms", "shown"]

_UNITS_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}


def moment_ms(text: str, *, now_ms: int | None = None) -> int:
    """Milliseconds since the epoch of `30m` (so long ago), `now`, `2026-11-25`, `2026-11-25T04:00+01:00`.

    Without a zone it is UTC, as everywhere in the product.  Raises Fatal for anything else.
    """
    now_ms = time.time_ns() // 1_000_000 if now_ms is None else now_ms
    if text == "now":
        return now_ms
    if ago := re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text):
        return now_ms - round(float(ago[1]) * _UNITS_MS[ago[2]])
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise Fatal(
            f"{text!r} is no moment: say how long ago (90s, 30m, 2h, 7d) or when (2026-11-25, 2026-11-25T04:00, "
            "2026-11-25T04:00+01:00; without a zone it is UTC)",
            exit_code=Exit.USAGE,
        ) from None
    return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def shown(moment: int) -> str:
    """Milliseconds since the epoch for people, in UTC; empty for 0."""
    if not moment:
        return ""
    try:
        return datetime.fromtimestamp(moment / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return str(moment)
