"""Chances of seeing as much, or more, when nothing is the matter.  Exact where the distribution is discrete."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

__all__ = [
    "beta_binomial_above",
    "binomial_above",
    "binomial_off",
    "chi_square_above",
    "normal_off",
    "stability",
]


def beta_binomial_above(hits: int, count: int, known_hits: float, known: float) -> float:
    """Of `hits` or more of `count`, after `known_hits` of `known` with the same unknown share; Jeffreys' prior."""
    a, b = known_hits + 0.5, known - known_hits + 0.5
    first = math.exp(_log_choose(count, hits) + _log_beta(hits + a, count - hits + b) - _log_beta(a, b))
    return _tail(first, hits, count, lambda x: (count - x) / (x + 1) * (x + a) / (count - x - 1 + b))


def binomial_above(hits: int, count: int, share: float) -> float:
    """Of `hits` or more of `count` that each come with the chance `share`."""
    if hits <= 0 or share >= 1.0:
        return 1.0
    if share <= 0.0 or hits > count:
        return 0.0
    first = math.exp(_log_choose(count, hits) + hits * math.log(share) + (count - hits) * math.log1p(-share))
    return _tail(first, hits, count, lambda x: (count - x) / (x + 1) * share / (1 - share))


def binomial_off(hits: int, count: int, expected: float) -> float:
    """Of a number as far from `expected`, on either side: twice the smaller tail.

    Offers have different chances; their number spreads less than one of equal chances, so this errs on the safe side.
    """
    share = min(1.0, max(0.0, expected / count))
    return min(
        1.0, 2 * min(binomial_above(hits, count, share), binomial_above(count - hits, count, 1 - share))
    )


def normal_off(z: float) -> float:
    """Of a standard normal variable as far from 0, on either side."""
    return math.erfc(abs(z) / math.sqrt(2))


def chi_square_above(x: float, freedom: int) -> float:
    """Of `x` or more; `freedom` must be even, for then it is a finite sum."""
    term = total = math.exp(-x / 2)
    for step in range(1, freedom // 2):
        term *= x / 2 / step
        total += term
    return min(1.0, total)


def stability(reference: Sequence[float], counts: Sequence[float]) -> tuple[float, float]:
    """Population stability index of two histograms less what chance alone gives, and the chance of so much.

    Where both come from one distribution, the index over (1 / n + 1 / m) is about chi-square with bins - 1 degrees of
    freedom.  Half a score is added to every bin, so that none is empty.
    """
    bins = len(counts)
    n, m = sum(counts) + bins / 2, sum(reference) + bins / 2
    shares = [((c + 0.5) / n, (r + 0.5) / m) for c, r in zip(counts, reference, strict=True)]
    index = math.fsum((p - q) * math.log(p / q) for p, q in shares)
    unit = 1 / n + 1 / m
    return index - (bins - 1) * unit, chi_square_above(index / unit, bins - 1)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def _tail(first: float, begin: int, end: int, ratio: Callable[[int], float]) -> float:
    """Sum of terms `begin` to `end`, each the one before times `ratio`."""
    terms = [first]
    for x, _ in pairwise(range(begin, end + 1)):
        terms.append(terms[-1] * ratio(x))
        if terms[-1] < terms[0] * 1e-18 and x > begin + 10:
            break
    return min(1.0, math.fsum(terms))
