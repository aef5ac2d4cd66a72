"""Whose turn it is, of a web process's threads, to compute: one has it at a time, so that the hot path finds its way in between.

Python gives its lock to any thread that wants it. An admit needs that a dozen times, and beside sixteen threads that take in as
many provisions it comes last each time. A turn is no lock: it ends when its thread has done, when that begins to wait for an
operation (`give_up`), and after LONGEST_S in any case, as who has it for so long waits for something else: a slow client, say.
docs/decisions/0702 has the figures.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

LONGEST_S = 0.1  # what a request needs, several times over

_turn: tuple[int, float] | None = None  # the thread that has it, and since when (monotonic clock)
_given_up = threading.Condition()


@contextmanager
def turn() -> Iterator[None]:
    """Wait for this thread's turn, and have it for the length of the block or less."""
    global _turn
    with _given_up:
        while _turn is not None and (left_s := _turn[1] + LONGEST_S - time.monotonic()) > 0:
            _given_up.wait(left_s)
        _turn = threading.get_ident(), time.monotonic()
    try:
        yield
    finally:
        give_up()


def give_up() -> None:
    """Let the next thread have this one's turn, if it has it: it is about to wait, or has done."""
    global _turn
    with _given_up:
        if _turn is not None and _turn[0] == threading.get_ident():
            _turn = None
            _given_up.notify()
