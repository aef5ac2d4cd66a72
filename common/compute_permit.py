"""The permit to compute: a single thread of a web process holds the permit at a time, to keep the hot path fast.

Python gives its interpreter lock to any waiting thread. An admit, which is on the hot path and needs no permit, needs the lock a
dozen times; beside sixteen threads with provisions, the admit would come last every time. The permit is not a lock. The permit
ends when its thread is done, when its thread begins to wait for an operation (`release`), and after LONGEST_S in any case:
a thread holding the permit for longer is waiting, for example for a slow client. docs/decisions/0702 has the figures.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

LONGEST_S = 0.1  # seconds; several times the need of a request

_holder: tuple[int, float] | None = None  # the holding thread's id, and the start of the hold (monotonic clock)
_released = threading.Condition()


@contextmanager
def held() -> Iterator[None]:
    """Wait for the permit, and hold the permit during the block, for at most LONGEST_S seconds."""
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
    """Pass the permit on if the calling thread holds the permit; called at the end, and before a wait for an operation."""
    global _holder
    with _released:
        if _holder is not None and _holder[0] == threading.get_ident():
            _holder = None
            _released.notify()
