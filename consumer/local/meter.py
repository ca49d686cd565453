"""How fast the demo runs: rates from the books, sizes of batches and transactions from the worker's metrics."""

from __future__ import annotations

import time
import urllib.request
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

from consumer.local.board import Pulse
from consumer.local.ledger import Ledger

__all__ = ["Meter"]

_Sizes = tuple[float, float]
"""(sum, count) of a histogram."""
_NONE: tuple[_Sizes, _Sizes] = ((0.0, 0.0), (0.0, 0.0))


@dataclass(slots=True)
class Meter:
    """What happened since the last reading."""

    ledger: Ledger
    port: int
    at_s: float = field(default_factory=time.monotonic)
    sent: int = 0
    done: int = 0
    sizes: tuple[_Sizes, _Sizes] = _NONE
    pulse: Pulse = field(default_factory=Pulse)

    def read(self, now_s: float) -> Pulse:
        """Rates since the last reading; mean sizes as they were where there was no batch since."""
        span, before = now_s - self.at_s, self.sizes
        self.sizes = _scrape(self.port) or before
        sent, done = self.ledger.total, self.ledger.settled
        self.pulse = Pulse(
            events=(sent - self.sent) / span,
            results=(done - self.done) / span,
            batch_size=_mean(before[0], self.sizes[0]) or self.pulse.batch_size,
            transaction_size=_mean(before[1], self.sizes[1]) or self.pulse.transaction_size,
        )
        self.sent, self.done, self.at_s = sent, done, now_s
        return self.pulse

    def whole(self) -> Pulse:
        """Rates and means from the first event to now."""
        batches, transactions = _scrape(self.port) or self.sizes
        rate = self.ledger.rate
        return Pulse(rate, rate, _mean(_NONE[0], batches), _mean(_NONE[1], transactions))


def _scrape(port: int) -> tuple[_Sizes, _Sizes] | None:
    """The worker's batch sizes and transaction sizes so far; None when it does not answer."""
    found: dict[str, float] = {}
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=2) as page:
            text = page.read().decode()
    except (OSError, TimeoutError):
        return None
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0.0) + sample.value
    size, transaction = "consumer_batch_size", "consumer_transaction_size"
    return (
        (found.get(f"{size}_sum", 0.0), found.get(f"{size}_count", 0.0)),
        (found.get(f"{transaction}_sum", 0.0), found.get(f"{transaction}_count", 0.0)),
    )


def _mean(before: _Sizes, after: _Sizes) -> float | None:
    count = after[1] - before[1]
    return (after[0] - before[0]) / count if count > 0 else None
