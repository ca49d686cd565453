"""The words of the task `insight`: what is looked for, what was found, when that is enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = ["EXAMPLES", "MAX_NAME_BYTES", "Finding", "Kind", "Thresholds", "earliest", "fits", "place"]

Kind = Literal["spam_share", "campaign", "new_object", "redemption_drift", "score_shift", "volume"]

EXAMPLES = 3
MAX_NAME_BYTES = 100
"""Names and ids that are longer are not remembered."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """When something is worth knowing: always a least effect, a least number, and a largest chance of being none."""

    chance: float = 1e-4
    """Largest chance of seeing as much when nothing is the matter, in each single look."""
    share_mails: float = 10
    """Mails of a domain that are judged together, at least; windows are put together until there are as many."""
    share_known: float = 20
    """Mails of a domain that must be known from before."""
    share_rise: float = 0.3
    """Least rise of its share of spam, from 0 to 1."""
    campaign_mails: float = 10
    """Nearly equal mails in two windows, at least."""
    object_uploads: float = 20
    """Uploads of a user that must be known."""
    object_score: float = 0.5
    """Least score of the object."""
    object_chance: float = 0.05
    """Largest chance that the user's next upload shows something new."""
    drift_offers: float = 100
    """Offers that are judged together, at least."""
    drift_share: float = 0.3
    """Least deviation of the redeemed from the expected, as a share of the expected."""
    shift_scores: float = 500
    """Scores that are judged together, at least."""
    shift_reference: float = 2_000
    """Scores that make a reference where the model's card has none."""
    shift_index: float = 0.25
    """Least population stability index, less what chance alone gives."""
    volume_windows: float = 24
    """Windows that must be known before one is judged."""
    volume_factor: float = 2.0
    """Least factor above or below the usual number."""
    volume_results: float = 20
    """Least difference to the usual number."""


@dataclass(frozen=True, slots=True)
class Finding:
    """An insight but for what the task adds to all of them; see schema `insight`.  Times in ms."""

    kind: Kind
    subject: str
    what: str
    size: float
    observed: float
    usual: float | None
    count: int
    sure: float
    since: int
    window_start: int
    window_end: int
    examples: Sequence[str] = ()

    def row(self) -> dict[str, Any]:
        return {**asdict(self), "examples": list(self.examples)}


def fits(name: str) -> bool:
    """Whether a name is short enough to be remembered."""
    return len(name) <= MAX_NAME_BYTES and len(name.encode("utf-8", "replace")) <= MAX_NAME_BYTES


def earliest(examples: list[list[Any]], time: int, name: str) -> None:
    """Put an example, [time, id], among the first few by time, whatever the order in which they come."""
    if not fits(name) or (len(examples) >= EXAMPLES and [time, name] >= examples[-1]):
        return
    if [time, name] not in examples:
        examples.append([time, name])
        examples.sort()
        del examples[EXAMPLES:]


def place(rows: dict[str, Any], name: str, most: int, empty: dict[str, Any]) -> dict[str, Any]:
    """The row of this name; for a new one without room the row goes that was not `seen` for longest."""
    row = rows.get(name)
    if row is None:
        while len(rows) >= most:
            del rows[min(rows, key=lambda other: (rows[other]["seen"], other))]
        row = rows[name] = empty
    found: dict[str, Any] = row
    return found
