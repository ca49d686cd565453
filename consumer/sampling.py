"""Which records get a span: the verdict of their trace, or for a record without one, chance."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping

from consumer.errors import Fatal

__all__ = ["DEFAULT_ROOT_RATIO", "Sampling", "sampling_from"]

DEFAULT_ROOT_RATIO = 0.01
ODD_DIGITS = b"13579bdf"


class Sampling:
    """Follows the parent's verdict and lets on average a share `ratio` of the records without parent begin a trace.

    Draws the distance to the next of these, so that the records in between cost nothing.
    """

    def __init__(self, ratio: float, *, parent_based: bool = True, seed: int | None = None) -> None:
        self.ratio = ratio
        self.parent_based = parent_based
        self._random = random.Random(seed)
        self._ahead = self._distance()

    def follows(self, traceparent: bytes) -> bool:
        """Whether a trace under way is recorded: as its parent says, else by its id, as everyone else decides."""
        if self.parent_based:
            return traceparent[54] in ODD_DIGITS
        return int(traceparent[19:35], 16) < self.ratio * 2**64

    def choose(self, count: int) -> list[int]:
        """Which of the next `count` records begin a trace."""
        chosen = []
        while self._ahead < count:
            chosen.append(self._ahead)
            self._ahead += 1 + self._distance()
        self._ahead -= count
        return chosen

    def _distance(self) -> int:
        if self.ratio >= 1.0:
            return 0
        if self.ratio <= 0.0:
            return 2**62
        return int(math.log(1.0 - self._random.random()) / math.log1p(-self.ratio))


def sampling_from(environ: Mapping[str, str]) -> Sampling:
    """The standard sampler settings; Fatal for a sampler or an argument that cannot work."""
    name = environ.get("OTEL_TRACES_SAMPLER", "").strip()
    argument = environ.get("OTEL_TRACES_SAMPLER_ARG", "").strip() or (
        "1.0" if name else str(DEFAULT_ROOT_RATIO)
    )
    name = name or "parentbased_traceidratio"
    plain = name.removeprefix("parentbased_")
    if plain in ("always_on", "always_off"):
        return Sampling(1.0 if plain == "always_on" else 0.0, parent_based=name != plain)
    if plain != "traceidratio":
        raise Fatal(
            f"OTEL_TRACES_SAMPLER is {name!r}, which is not supported: use always_on, always_off or"
            " traceidratio, with or without parentbased_ in front"
        )
    try:
        ratio = float(argument)
    except ValueError:
        ratio = math.nan
    if not 0.0 <= ratio <= 1.0:
        raise Fatal(f"OTEL_TRACES_SAMPLER_ARG is {argument!r}: set a share between 0 and 1, such as 0.01")
    return Sampling(ratio, parent_based=name != plain)
