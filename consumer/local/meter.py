"""How fast a task works now: from its books, over the last seconds."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from consumer.local.ledger import Ledger

__all__ = ["Meter"]

_WINDOW_S = 5.0


@dataclass(slots=True)
class Meter:
    """Reads `ledger` whenever it is told to."""

    ledger: Ledger
    _seen: deque[tuple[float, int]] = field(default_factory=deque)

    def read(self, now_s: float) -> float | None:
        """Events settled a second; None before there are two readings."""
        self._seen.append((now_s, self.ledger.settled))
        while len(self._seen) > 2 and now_s - self._seen[0][0] > _WINDOW_S:
            self._seen.popleft()
        (begin_s, before), (end_s, after) = self._seen[0], self._seen[-1]
        return (after - before) / (end_s - begin_s) if end_s > begin_s else None
