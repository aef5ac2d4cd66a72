"""The permit to compute: among the threads of a web process one holds it at a time, so that the hot path finds its way in
between.

Python gives its interpreter lock to any thread that wants it. An admit needs the lock a dozen times, and beside sixteen threads
that take in as many provisions the admit comes last each time. The permit is no lock. It ends when its thread has done, when its
thread begins to wait for an operation (`release`), and after LONGEST_S in any case: a thread that holds the permit for so long
waits for something else, a slow client for instance. docs/decisions/0702 has the figures.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

LONGEST_S = 0.1  # what a request needs, several times over

_holder: tuple[int, float] | None = None  # the thread that holds the permit, and since when (monotonic clock)
_released = threading.Condition()


@contextmanager
def held() -> Iterator[None]:
    """Wait for the permit, and hold it for the length of the block or less."""
    global _holder
    with _released:
        while _holder is not None and (left_s := _holder[1] + LONGEST_S - time.monotonic()) > 0:
            _released.wait(left_s)
        _holder = threading.get_ident(), time.monotonic()
    try:
        yield
    finally:
        release()


def release() -> None:
    """Let the next thread have the permit, if this thread holds it: this thread is about to wait, or has done."""
    global _holder
    with _released:
        if _holder is not None and _holder[0] == threading.get_ident():
            _holder = None
            _released.notify()
