"""The process's connections to Valkey: a shared pool, and short time-outs and a breaker against long delays by a frozen Valkey.

The first failure opens the breaker for BREAKER_S seconds: a frozen Valkey costs a time-out per process, not per request.
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
    """A client shared by all threads; commands raise redis.RedisError within about TIMEOUT_S if Valkey does not answer."""
    with _asking:
        return _make()


# Without the lock, two threads calling `client` first at once would make two clients. The surplus client, once garbage-collected,
# would close its connections while a thread still waits on them.
_asking = threading.Lock()


@cache
def _make() -> redis.Redis:
    return redis.Redis.from_url(
        settings.REDIS_URL, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S, health_check_interval=30, retry=None
    )


def ask(question: Callable[[redis.Redis], T]) -> T:
    """Return `question(client)`. Raises Away if Valkey does not answer, and then for BREAKER_S without contacting Valkey."""
    global _open_until
    if time.monotonic() < _open_until:
        raise Away("the breaker is open")
    try:
        return question(client())
    except redis.RedisError as error:
        _open_until = time.monotonic() + BREAKER_S
        raise Away(f"{type(error).__name__}: {error}") from error
