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
log = structlog.get_logger(__name__)
_open_until = 0.0


class _PerMinute(RateLimitItemPerMinute):
    """N a minute, under a key without N: the library's own has it, and lowering a limit would start a new count."""

    def key_for(self, *identifiers: str) -> str:
        return "/".join(("admits", *identifiers))


@cache
def _limiter() -> SlidingWindowCounterRateLimiter:
    options = {"socket_timeout": valkey.TIMEOUT_S, "socket_connect_timeout": valkey.TIMEOUT_S, "wrap_exceptions": True}
    return SlidingWindowCounterRateLimiter(RedisStorage(settings.LIMITS_URL, **options))


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
        if _limiter().hit(item, product_id):
            return None
        reset = _limiter().get_window_stats(item, product_id).reset_time
    except (StorageError, redis.RedisError) as error:
        _open_until = time.monotonic() + BREAKER_S
        log.warning("rate_limiter_unavailable", error=type(error).__name__, breaker_s=BREAKER_S)
        return None
    return max(1, math.ceil(reset - time.time() + random.uniform(0, 1)))  # noqa: S311 (jitter)
