"""Exit codes: what a supervisor may read off them."""

from __future__ import annotations

from enum import IntEnum

__all__ = ["Exit"]


class Exit(IntEnum):
    OK = 0
    """Done, or stopped as asked with everything committed."""
    FATAL = 1
    """Cannot go on; the last line says what to do.  `check`: something must be mended."""
    USAGE = 2
    """The call or a setting cannot work as given: restarting will not help."""
    UNFINISHED = 3
    """The deadline for stopping passed; what was not committed is done again by the next worker, nothing is lost."""
    UNAVAILABLE = 4
    """Kafka or the registry did not answer in time: try again later."""
