"""The books of one task in a demo: what went in, what came out, how long it took.  Pure; times come from outside."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field
from enum import Enum

__all__ = ["Due", "Ledger", "Line", "Sent", "quantile"]

_REMEMBERED = 200_000

Place = tuple[str, int]
"""Topic and partition."""


class Due(Enum):
    """What an event must become."""

    RESULT = "one result"
    DEAD_LETTER = "one dead letter"
    NOTHING = "nothing: the task has nothing to say"
    MAYBE = "a result or nothing"


@dataclass(frozen=True, slots=True)
class Sent:
    """An event on its way."""

    at_s: float
    due: Due = Due.RESULT
    what: str = ""
    """The event in a few words."""
    truth: bool | None = None
    """What a result will be held against; None where nobody knows."""


@dataclass(frozen=True, slots=True)
class Line:
    """A result in plain words."""

    text: str
    right: bool | None = None
    """Whether it is true, where that is known."""
    telling: bool = True
    """Whether there is more to it than to most."""


@dataclass(slots=True)
class Ledger:
    """Three threads write, each other fields: one `send` and `placed`, one `result` and `dead`, one `reached`; whoever
    shows it may read at any time."""

    sent: dict[str, Sent] = field(default_factory=dict)
    outcomes: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    """Dead letters by reason."""
    judged: Counter[tuple[bool, bool]] = field(default_factory=Counter)
    """Results whose truth is known, by (truth, whether the result is right)."""
    waiting: defaultdict[Place, deque[tuple[int, str]]] = field(default_factory=lambda: defaultdict(deque))
    """(offset, event) of those that may end in nothing, by place."""
    latencies_s: deque[float] = field(default_factory=lambda: deque(maxlen=100_000))
    latest: deque[Line] = field(default_factory=lambda: deque(maxlen=32))
    total: int = 0
    """Events sent."""
    broken: int = 0
    """Of these, records that were broken on purpose."""
    results: int = 0
    answered: int = 0
    """Events that have their result or dead letter."""
    passed: int = 0
    """Events that the group's committed offsets have passed, of those that may end in nothing."""
    spoken: int = 0
    """Of those that may or may not have a result, the ones that have."""
    duplicates: int = 0
    """Outcomes beyond the first of an event, among the last 200,000 events."""
    strangers: int = 0
    """Outcomes of events that were never sent."""
    wrongly_dead: int = 0
    """Good events that became dead letters."""
    wrongly_alive: int = 0
    """Results of broken records, or of events that should have none."""
    first_s: float | None = None
    last_s: float = 0.0

    def send(self, event_id: str, sent: Sent) -> None:
        self.sent[event_id] = sent
        self.first_s = sent.at_s if self.first_s is None else self.first_s
        self.broken += sent.due is Due.DEAD_LETTER
        self.total += 1
        if len(self.sent) > _REMEMBERED:
            self._forget()

    def placed(self, event_id: str, place: Place, offset: int) -> None:
        """Kafka has the event: those that may end in nothing are settled by committed offsets."""
        if self.sent[event_id].due in (Due.NOTHING, Due.MAYBE):
            self.waiting[place].append((offset, event_id))

    def _forget(self) -> None:
        """Drop the older half of what is settled, or a demo that runs for days would fill the memory."""
        for event_id in list(self.sent)[: _REMEMBERED // 2]:
            if event_id in self.outcomes:
                del self.sent[event_id], self.outcomes[event_id]

    def result(self, event_id: str, line: Line | None, now_s: float) -> None:
        """A result became visible; `line` says it in plain words."""
        sent = self._outcome(event_id, now_s)
        if sent is None:
            return
        self.results += 1
        if sent.due in (Due.DEAD_LETTER, Due.NOTHING):
            self.wrongly_alive += 1
            return
        if line is None:
            return
        self.latest.appendleft(line)
        if line.right is not None and sent.truth is not None:
            self.judged[sent.truth, line.right] += 1

    def dead(self, event_id: str, reason: str, now_s: float) -> None:
        """A dead letter became visible."""
        sent = self._outcome(event_id, now_s)
        if sent is not None:
            self.reasons[reason] += 1
            self.wrongly_dead += sent.due is not Due.DEAD_LETTER

    def reached(self, place: Place, offset: int) -> None:
        """The group has committed everything before `offset`."""
        queue = self.waiting[place]
        while queue and queue[0][0] < offset:
            _, event_id = queue.popleft()
            self.outcomes.setdefault(event_id, 0)
            self.passed += 1

    def _outcome(self, event_id: str, now_s: float) -> Sent | None:
        sent = self.sent.get(event_id)
        if sent is None:
            self.strangers += 1
            return None
        self.outcomes[event_id] += 1
        self.last_s = now_s
        if self.outcomes[event_id] > 1:
            self.duplicates += 1
            return sent
        self.latencies_s.append(now_s - sent.at_s)
        self.answered += sent.due in (Due.RESULT, Due.DEAD_LETTER)
        self.spoken += sent.due is Due.MAYBE
        return sent

    @property
    def settled(self) -> int:
        """Events that have become what they had to."""
        return self.answered + self.passed

    @property
    def silent(self) -> int:
        """Events that ended in nothing, as they may."""
        return max(0, self.passed - self.spoken)

    @property
    def open(self) -> int:
        """Sent, and nothing has become of them yet."""
        return self.total - self.settled

    @property
    def dead_letters(self) -> int:
        return sum(self.reasons.values())

    @property
    def wrong(self) -> int:
        """Outcomes that should not be."""
        return self.duplicates + self.strangers + self.wrongly_dead + self.wrongly_alive

    @property
    def clean(self) -> bool:
        """Whether every event has become what it had to, once."""
        return not (self.open or self.wrong)

    @property
    def rate(self) -> float:
        """Events settled a second from the first event sent to the last outcome; nan before the first outcome."""
        if self.first_s is None or self.last_s <= self.first_s:
            return float("nan")
        return self.settled / (self.last_s - self.first_s)


def quantile(values: list[float], share: float) -> float:
    """The value below which `share` of the values lie; nan of none."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
