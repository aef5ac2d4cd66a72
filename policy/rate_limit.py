"""The admit rate limit: one sliding window per product, shared by every process through Valkey.

While Valkey is away admits go on unlimited: a limiter that cannot count must not stop every user of every product.
"""

import threading
import time
from functools import cache
from typing import Any

import redis
import structlog
from limits.storage import RedisStorage

from common import valkey
from policy.errors import RateLimited
from policy.rules import Policy
from policy.sliding_window import CLOSED, MINUTE_S, Counts, Window

LOG_EVERY_S = 60.0
log = structlog.get_logger(__name__)

# Both of the library's scripts as one, so that what is left is known after the round trip that counts. Each is the body of a
# function, whose parameter hides the global ARGV.
_SCRIPT = f"""
local function acquire(ARGV)
{RedisStorage.SCRIPT_ACQUIRE_SLIDING_WINDOW.decode()}
end
local function window(ARGV)
{RedisStorage.SCRIPT_SLIDING_WINDOW.decode()}
end
local fits = tonumber(ARGV[3]) == 0 or acquire(ARGV)
local counts = window({{ARGV[2]}})
return {{fits and 1 or 0, counts[1], counts[2], counts[3], counts[4]}}
"""


def hit(product_id: str, policy: Policy) -> Window | None:
    """Count one admit of the product; returns what is left, None without a `rate_limit_rpm` or while Valkey is away.

    Raises RateLimited, and counts nothing, once the limit's admits of the last minute are used up.
    """
    limit = policy.get("rate_limit_rpm")
    if limit is None:
        return None
    if limit == 0:
        raise RateLimited.by(CLOSED)
    try:
        fits, counts = valkey.ask(lambda client: _count(client, product_id, limit, 1))
    except valkey.Away as away:
        _pass_uncounted(str(away))
        return None
    if _uncounted:
        _tell_rest()
    window = counts.window(limit)
    if not fits:
        raise RateLimited.by(window)
    return window


def peek(product_id: str, policy: Policy) -> Window | None:
    """What is left, without counting anything; None where `hit` gives None."""
    limit = policy.get("rate_limit_rpm")
    if limit is None or limit == 0:
        return None if limit is None else CLOSED
    try:
        return valkey.ask(lambda client: _count(client, product_id, limit, 0))[1].window(limit)
    except valkey.Away:
        return None


@cache
def _script() -> Any:
    return valkey.client().register_script(_SCRIPT)


def _count(client: redis.Redis, product_id: str, limit: int, amount: int) -> tuple[bool, Counts]:
    # The library's keys, but without the limit: lowering that must not start a new count. Braces keep both on one node.
    key = f"LIMITS:{{admits/{product_id}}}"
    fits, previous, previous_ms, current, current_ms = _script()([f"{key}/-1", key], [limit, MINUTE_S, amount], client)
    ends_s = (max(0, previous_ms or 0) / 1000, max(0, current_ms or 0) / 1000)
    return bool(fits), Counts(int(previous or 0), ends_s[0], int(current or 0), ends_s[1])


# -- while Valkey is away ----------------------------------------------------------------------------------------------

_uncounted = 0
_log_after = 0.0
_lock = threading.Lock()


def _pass_uncounted(error: str) -> None:
    """Count an admit that no limit could count, and log their number at once and then once in LOG_EVERY_S."""
    global _uncounted, _log_after
    with _lock:
        _uncounted += 1
        if time.monotonic() < _log_after:
            return
        passed, _uncounted, _log_after = _uncounted, 0, time.monotonic() + LOG_EVERY_S
    log.warning("rate_limiter_unavailable", error=error, uncounted_admits=passed)


def _tell_rest() -> None:
    """Valkey is back: log how many admits no line has told of yet."""
    global _uncounted
    with _lock:
        passed, _uncounted = _uncounted, 0
    if passed:
        log.warning("rate_limiter_back", uncounted_admits=passed)
