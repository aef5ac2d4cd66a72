"""The process's connections to Valkey: a shared pool, and short time-outs and a breaker against long delays by a frozen Valkey.

The first failure opens the breaker for BREAKER_S seconds: a frozen Valkey costs a time-out per process, not per request.

Whoever reaches Valkey can put anything at our keys. An entry that cannot be ours is removed and logged, and the question is asked
again: the entry stops nothing else.
"""

import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import TypeVar, cast

import redis
import structlog

from common.outages import VALKEY
from common.settings import settings

TIMEOUT_S = 0.1
BREAKER_S = 4.0  # Valkey is in use again within 5 s of its return
T = TypeVar("T")
_open_until = 0.0
log = structlog.get_logger(__name__)

# How Valkey, or a script in Valkey, complains of an entry's type or value. Other refusals, such as READONLY and OOM, concern
# Valkey as a whole: a Valkey that refuses writes counts as away.
_COMPLAINT = re.compile(r"WRONGTYPE|is not an integer|is not a valid float|would overflow|user_script:\d+: attempt to")


class Away(Exception):
    """Valkey does not answer."""


class Spoilt(Exception):
    """An entry of Valkey is not what we store at its key."""


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


def ask(question: Callable[[redis.Redis], T], keys: Mapping[str, str] | None = None, *, numbers: Iterable[str] = ()) -> T:
    """Return `question(client)`. Raises Away if Valkey does not answer, and then for BREAKER_S without contacting Valkey.

    `keys` are the keys that the question reads, with their types as Valkey names them; `numbers` are the keys among them whose
    values have to be numbers. If an entry is spoilt (the question may say so by raising Spoilt), the entry is removed, and the
    question is asked once more.
    """
    if time.monotonic() < _open_until:
        raise Away("the breaker is open")
    try:
        return _try(question)
    except Spoilt as spoilt:
        complaint = str(spoilt)
    try:
        _try(lambda client: _remove(client, keys or {}, numbers, complaint))
        return _try(question)
    except Spoilt as again:
        raise Away(f"an entry is spoilt: {again}") from again


def _try(question: Callable[[redis.Redis], T]) -> T:
    """Return `question(client)`. Raises Away, which opens the breaker, or Spoilt."""
    global _open_until
    try:
        answer = question(client())
    except redis.RedisError as error:
        if is_complaint(error):
            raise Spoilt(str(error)) from error
        _open_until = time.monotonic() + BREAKER_S
        VALKEY.failed(error)
        raise Away(f"{type(error).__name__}: {error}") from error
    VALKEY.answered()
    return answer


def is_complaint(error: redis.RedisError) -> bool:
    """Whether the error concerns the type or value of an entry, and not Valkey as a whole."""
    return isinstance(error, redis.ResponseError) and _COMPLAINT.search(str(error)) is not None


def _remove(client: redis.Redis, keys: Mapping[str, str], numbers: Iterable[str], complaint: str) -> None:
    """Remove the keys of another type than ours; if all types are ours, the keys of numbers."""
    types = {key: cast(bytes, client.type(key)).decode() for key in keys}
    foreign = [key for key, found in types.items() if found not in ("none", keys[key])]
    spoilt = foreign or list(numbers)
    if spoilt:
        client.delete(*spoilt)
    log.warning("valkey_entry_removed", keys=spoilt, error=complaint)
