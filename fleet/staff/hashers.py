"""Password hashing, two hashes at a time per process: each takes a processor for most of a second, beside the admits."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from django.contrib.auth.hashers import PBKDF2PasswordHasher

from common.settings import settings
from fleet.staff.brakes import Paused

AT_A_TIME = 2  # hashes
PLACES = max(AT_A_TIME, min(6, settings.ENV.web_threads // 2))  # threads that hash or wait; the others are for other requests
OF_STRANGERS = max(1, PLACES - 2)  # places for log-ins: the rest is for whoever is logged in already
WAIT_S = 5.0

_slots = threading.BoundedSemaphore(AT_A_TIME)
_places = threading.BoundedSemaphore(PLACES)
_of_strangers = threading.BoundedSemaphore(OF_STRANGERS)
_mine = threading.local()


@contextmanager
def turn_of_stranger() -> Iterator[None]:
    """As `turn`, for somebody who is not logged in. Raises Paused if strangers have all their places."""
    if not _of_strangers.acquire(blocking=False):
        raise Paused(1)
    try:
        with turn():
            yield
    finally:
        _of_strangers.release()


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
    """Django's default hasher, each of whose hashes waits for its turn. Its hashes are the same as Django's.

    A hash with fewer iterations than today's is renewed by `fleet.staff.passwords`, and not by Django, which would write the old
    password over a new one that somebody sets at the same moment.
    """

    def must_update(self, encoded: str) -> bool:
        return False

    def is_weak(self, encoded: str) -> bool:
        """Whether the hash has fewer iterations, or a shorter salt, than new hashes."""
        return super().must_update(encoded)

    def encode(self, password: str, salt: str, iterations: int | None = None) -> str:
        with turn():
            return super().encode(password, salt, iterations)
