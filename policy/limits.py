"""The admit rate limit: one sliding window per product, shared by every process through Valkey.

While Valkey is away admits go on unlimited: a limiter that cannot count must not stop every user of every product. The first
failure opens a breaker for BREAKER_S seconds, so that a frozen Valkey costs one time-out per process and not one per request.
"""

import math
import random
import time
from functools import cache

import redis
import structlog
from django.conf import settings
from limits import RateLimitItemPerMinute
from limits.errors import StorageError
from limits.storage import RedisStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from policy import valkey
from policy.errors import RateLimited
from policy.rules import Policy

BREAKER_S = 5.0
MINUTE_S = 60
log = structlog.get_logger(__name__)
_open_until = 0.0


class _PerMinute(RateLimitItemPerMinute):
    """N a minute, under a key without N: the library's own has it, and lowering a limit would start a new count."""

    def key_for(self, *identifiers: bytes | str | int | float) -> str:
        return "/".join(("admits", *map(str, identifiers)))


@cache
def _storage() -> RedisStorage:
    return RedisStorage(
        settings.LIMITS_URL, wrap_exceptions=True, socket_timeout=valkey.TIMEOUT_S, socket_connect_timeout=valkey.TIMEOUT_S
    )


def hit(product_id: str, policy: Policy) -> None:
    """Count one admit of the product. Raises RateLimited once the policy's `rate_limit_rpm` of the last minute are used up."""
    limit = policy.get("rate_limit_rpm")
    if limit is None:
        return
    if limit == 0:
        raise RateLimited("rate_limit_rpm", 0, 0, retry_after_s=60)
    retry_after = _count(product_id, limit)
    if retry_after is not None:
        raise RateLimited("rate_limit_rpm", limit, limit, retry_after_s=retry_after)


def _count(product_id: str, limit: int) -> int | None:
    """Seconds to wait when the window is full, else None; None as well while Valkey is away."""
    global _open_until
    if time.monotonic() < _open_until:
        return None
    item = _PerMinute(limit)
    try:
        if SlidingWindowCounterRateLimiter(_storage()).hit(item, product_id):
            return None
        window = _storage().get_sliding_window(item.key_for(product_id), MINUTE_S)
    except (StorageError, redis.RedisError) as error:
        _open_until = time.monotonic() + BREAKER_S
        log.warning("rate_limiter_unavailable", error=type(error).__name__, breaker_s=BREAKER_S)
        return None
    return max(1, math.ceil(_free_in_s(limit, *window) + random.uniform(0, 1)))  # noqa: S311 (jitter)


def _free_in_s(limit: int, previous: int, previous_ends_s: float, current: int, current_ends_s: float) -> float:
    """Seconds until one more admit fits. (The library's own figure is when a count next falls, which a lowered limit outlasts.)

    Counts of the last two minutes, each with the seconds until it expires; the older one fades out linearly over its last minute.
    """
    if current < limit and previous:
        return previous_ends_s - MINUTE_S * (limit - current) / previous
    turns_s = current_ends_s - MINUTE_S  # from then on the present minute is the older one
    return turns_s + MINUTE_S * (1 - limit / max(current, limit))
