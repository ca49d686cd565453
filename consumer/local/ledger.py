"""The books of a demo or a test run: what went in, what came out, how long it took.  Pure; times come from outside."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field

__all__ = ["Ledger", "Sent", "Verdict", "quantile"]

_REMEMBERED = 200_000


@dataclass(frozen=True, slots=True)
class Sent:
    """An event on its way.  `label`: True spam, False good mail, None broken on purpose."""

    at_s: float
    label: bool | None
    subject: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the stream said about one e-mail."""

    subject: str
    probability: float
    threshold: float
    """Probability from which on an e-mail is called spam."""
    spam: bool
    truth: bool
    """Whether it is spam."""
    model: str

    @property
    def right(self) -> bool:
        return self.spam is self.truth


@dataclass(slots=True)
class Ledger:
    """One thread writes `sent`, another `result` and `dead`; whoever shows it may read at any time."""

    sent: dict[str, Sent] = field(default_factory=dict)
    outcomes: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    """Dead letters by reason."""
    strangers: int = 0
    """Results of events that were never sent."""
    wrongly_dead: int = 0
    """Good e-mails that became dead letters."""
    wrongly_alive: int = 0
    """Broken records that got a verdict."""
    right: int = 0
    judged: int = 0
    good_mails: int = 0
    false_alarms: int = 0
    latencies_s: deque[float] = field(default_factory=lambda: deque(maxlen=100_000))
    latest: deque[Verdict] = field(default_factory=lambda: deque(maxlen=32))
    first_s: float | None = None
    """When the first event was sent."""
    last_s: float = 0.0
    """When the last outcome became visible."""
    total: int = 0
    """Events sent."""
    settled: int = 0
    """Events with an outcome."""
    broken: int = 0
    """Records that were broken on purpose."""
    duplicates: int = 0
    """Outcomes beyond the first of an event, among the last 200,000 events."""

    def send(self, event_id: str, sent: Sent) -> None:
        self.sent[event_id] = sent
        self.first_s = sent.at_s if self.first_s is None else self.first_s
        self.total += 1
        self.broken += sent.label is None
        if len(self.sent) > _REMEMBERED:
            self._forget()

    def _forget(self) -> None:
        """Drop the older half of what is settled, or a demo that runs for days would fill the memory."""
        for event_id in list(self.sent)[: _REMEMBERED // 2]:
            if self.outcomes.pop(event_id, 0):
                del self.sent[event_id]

    def result(
        self, event_id: str, probability: float, threshold: float, spam: bool, model: str, now_s: float
    ) -> None:
        """A verdict became visible."""
        sent = self._outcome(event_id, now_s)
        if sent is None:
            return
        if sent.label is None:
            self.wrongly_alive += 1
            return
        self.judged += 1
        self.right += sent.label is spam
        self.good_mails += not sent.label
        self.false_alarms += spam and not sent.label
        self.latest.appendleft(Verdict(sent.subject, probability, threshold, spam, sent.label, model))

    def dead(self, event_id: str, reason: str, now_s: float) -> None:
        """A dead letter became visible."""
        sent = self._outcome(event_id, now_s)
        if sent is not None:
            self.reasons[reason] += 1
            self.wrongly_dead += sent.label is not None

    def _outcome(self, event_id: str, now_s: float) -> Sent | None:
        sent = self.sent.get(event_id)
        if sent is None:
            self.strangers += 1
            return None
        self.outcomes[event_id] += 1
        self.last_s = now_s
        if self.outcomes[event_id] == 1:
            self.settled += 1
            self.latencies_s.append(now_s - sent.at_s)
        else:
            self.duplicates += 1
        return sent

    @property
    def open(self) -> int:
        """Sent and without any outcome."""
        return self.total - self.settled

    @property
    def clean(self) -> bool:
        """Whether every event has exactly the outcome that it should have."""
        return not (self.open or self.duplicates or self.strangers or self.wrongly_dead or self.wrongly_alive)

    @property
    def rate(self) -> float:
        """Outcomes a second from the first event sent to the last outcome; nan before the first outcome."""
        if self.first_s is None or self.last_s <= self.first_s:
            return float("nan")
        return self.settled / (self.last_s - self.first_s)


def quantile(values: list[float], share: float) -> float:
    """The value below which `share` of the values lie; nan of none."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
