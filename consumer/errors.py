"""The three errors, named by what to do about them.

    ConsumerError
    ├── BadRecord   this record cannot be processed: dead-letter it, go on
    ├── Retry       the outside world is away for now: wait or abort, then try again
    └── Fatal       the process cannot go on: exit non-zero; the message says what to do

Foreign exceptions are translated into one of them once, at the door of their library, with `raise ... from`.
"""

from __future__ import annotations

__all__ = ["BadRecord", "ConsumerError", "Fatal", "Retry", "missing_package"]


class ConsumerError(Exception):
    """Common ancestor; never raised itself."""


class BadRecord(ConsumerError):
    """One record cannot be processed.

    `reason` is a short stable word for headers and metrics (`truncated`, `unknown_schema`, `model_error`); the
    text says precisely what was wrong and where.  `stage` is where on the data path it happened: `decode`,
    `recall`, `prepare`, `run`, `finish`, `encode` or `publish`; whoever catches the error fills it in when
    the raiser does not know it.
    """

    def __init__(self, reason: str, detail: str = "", *, stage: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail
        self.stage = stage


class Retry(ConsumerError):
    """Something outside is away for now (broker, registry); trying again later is right."""


class Fatal(ConsumerError):
    """The process must end.  The text is for the person who is woken up: what happened and what to do."""

    def __init__(self, message: str, *, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def missing_package(package: str, extra: str) -> str:
    """What to say when a smaller installation lacks something; `extra` is ours that brings it."""
    return (
        f"this needs the package {package}, which the extra {extra!r} brings: in the folder of stream-consumer, "
        f"pip install '.[{extra}]'"
    )
