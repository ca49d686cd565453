"""The ways in which a transaction can end other than well, named by what to do next.

RetryTransaction        aborted: send it again
├── MembershipStale     ... under a fresh grant
├── Narrowed            ... at once, now in smaller batches
└── Refused             ... without these records
OutcomeUnknown          replace the producer, then ask for the committed offsets
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from consumer.errors import Retry

__all__ = ["MembershipStale", "Narrowed", "OutcomeUnknown", "Refusal", "Refused", "RetryTransaction"]


class RetryTransaction(Retry):
    """The transaction is aborted; nothing of it is visible.  `reason` is a word for metrics."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class MembershipStale(RetryTransaction):
    """The group has moved on since the grant was made."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A record that its topic does not take; `reason` is Kafka's word for why."""

    topic: str
    key: bytes | None
    value: bytes | None
    reason: str
    alone: bool
    """Whether it stood alone in its batch: else the fault may be a neighbour's."""

    @property
    def too_large(self) -> bool:
        return self.reason == "MSG_SIZE_TOO_LARGE"


class Narrowed(RetryTransaction):
    """A topic does not take a batch; smaller ones will show whether a record of it is at fault."""


class Refused(RetryTransaction):
    """Topics do not take some of the records."""

    def __init__(self, records: Sequence[Refusal]) -> None:
        first = records[0]
        super().__init__(
            first.reason,
            f"topic {first.topic!r} does not take a record of {len(first.value or b'')} bytes ({first.reason}; "
            f"{len(records)} refused)",
        )
        self.records = records


class OutcomeUnknown(Retry):
    """It may be committed or not, and this producer cannot go on.  `fenced`: another one has taken its id over."""

    def __init__(self, reason: str, detail: str, *, fenced: bool) -> None:
        super().__init__(detail)
        self.reason = reason
        self.fenced = fenced
