"""Password hashing, two hashes at a time per process: each takes a processor for most of a second, beside the admits."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from django.contrib.auth.hashers import PBKDF2PasswordHasher

from fleet.staff.brakes import Paused

AT_A_TIME = 2  # hashes
WAITING = 4  # threads that wait for their turn, at most: the others of a web process are for other requests
WAIT_S = 5.0

_slots = threading.BoundedSemaphore(AT_A_TIME)
_places = threading.BoundedSemaphore(AT_A_TIME + WAITING)
_mine = threading.local()


@contextmanager
def turn() -> Iterator[None]:
    """Hold one of the process's turns to hash during the block; a thread that holds a turn goes on with it.

    Raises Paused if too many threads wait, or if no turn comes within WAIT_S seconds.
    """
    if getattr(_mine, "holds", False):
        yield
        return
    if not _places.acquire(blocking=False):
        raise Paused(1)
    try:
        if not _slots.acquire(timeout=WAIT_S):
            raise Paused(1)
        _mine.holds = True
        try:
            yield
        finally:
            _mine.holds = False
            _slots.release()
    finally:
        _places.release()


class TakingTurns(PBKDF2PasswordHasher):
    """Django's default hasher, each of whose hashes waits for its turn. Its hashes are the same as Django's."""

    def encode(self, password: str, salt: str, iterations: int | None = None) -> str:
        with turn():
            return super().encode(password, salt, iterations)
