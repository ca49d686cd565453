"""Waiting for a condition instead of sleeping."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import pytest

T = TypeVar("T")


def wait_until(
    predicate: Callable[[], T], timeout_s: float, message: str | Callable[[], str], *, every_s: float = 0.05
) -> T:
    """Calls `predicate` until it gives something true and returns that; fails with `message` if it never does.

    An exception of the predicate is the test's: it is not swallowed.
    """
    deadline = time.monotonic() + timeout_s
    while not (value := predicate()):
        if time.monotonic() >= deadline:
            pytest.fail(f"not within {timeout_s} s: {message() if callable(message) else message}")
        time.sleep(every_s)
    return value
