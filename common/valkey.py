"""The process's connections to Valkey: one pool, short time-outs and a breaker, so that a frozen Valkey delays nobody for long.

The first failure opens the breaker for BREAKER_S seconds: a frozen Valkey costs one time-out per process and not one per request.
"""

import threading
import time
from collections.abc import Callable
from functools import cache
from typing import TypeVar

import redis

from common.settings import settings

TIMEOUT_S = 0.1
BREAKER_S = 4.0  # Valkey is in use again within 5 s of its return
T = TypeVar("T")
_open_until = 0.0


class Away(Exception):
    """Valkey does not answer."""


def client() -> redis.Redis:
    """A client shared by all threads; every command raises redis.RedisError within about TIMEOUT_S when Valkey is away."""
    with _asking:
        return _make()


# Of two threads that ask first at the same time the second would make another, and that one, once it is forgotten, closes its
# connections under whoever still waits on them.
_asking = threading.Lock()


@cache
def _make() -> redis.Redis:
    return redis.Redis.from_url(
        settings.REDIS_URL, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S, health_check_interval=30, retry=None
    )


def ask(question: Callable[[redis.Redis], T]) -> T:
    """What `question` gets out of a client. Raises Away when Valkey does not answer; for BREAKER_S after that, without asking."""
    global _open_until
    if time.monotonic() < _open_until:
        raise Away("the breaker is open")
    try:
        return question(client())
    except redis.RedisError as error:
        _open_until = time.monotonic() + BREAKER_S
        raise Away(f"{type(error).__name__}: {error}") from error
