"""Waiting for a condition, instead of for a length of time."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(condition: Callable[[], T], timeout_s: float = 10.0, what: str = "the condition holds") -> T:
    """Look at `condition` until it is true and return it; fail the test after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.05)
    return value


def now() -> float:
    return time.monotonic()


def passed(since: float, seconds: float) -> bool:
    """Whether `seconds` have gone by: for a test whose subject is the moment itself."""
    return time.monotonic() - since >= seconds
