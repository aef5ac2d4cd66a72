"""The admit rate limit: one sliding window per product, shared by every process through Valkey.

While Valkey is away, admits are not limited: without counts, the only alternative would be to refuse all users of all products.
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
LONGEST = 12  # digits of a count
log = structlog.get_logger(__name__)

# Two scripts of the library `limits` as one script: a single round trip both counts the admit and reads the remaining admits.
# Every script becomes the body of a function; the function's parameter ARGV hides Valkey's global ARGV.
_SCRIPT = f"""
local function acquire(ARGV)
{RedisStorage.SCRIPT_ACQUIRE_SLIDING_WINDOW.decode()}
end
local function window(ARGV)
{RedisStorage.SCRIPT_SLIDING_WINDOW.decode()}
end
-- ARGV: limit, minute in seconds, admits to count; 0 admits only reads the counts
local fits = tonumber(ARGV[3]) == 0 or acquire(ARGV)
local counts = window({{ARGV[2]}})
return {{fits and 1 or 0, counts[1], counts[2], counts[3], counts[4]}}
"""


def hit(product_id: str, policy: Policy) -> Window | None:
    """Count one admit of the product and return the window afterwards; None without a `rate_limit_rpm` or while Valkey is away.

    Raises RateLimited, without counting the admit, if the limit is used up.
    """
    limit = policy.get("rate_limit_rpm")
    if limit is None:
        return None
    if limit == 0:
        raise RateLimited.by(CLOSED)
    try:
        fits, counts = _ask(product_id, limit, 1)
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
    """Return the window without counting an admit; None in the cases where `hit` returns None."""
    limit = policy.get("rate_limit_rpm")
    if limit is None or limit == 0:
        return None if limit is None else CLOSED
    try:
        return _ask(product_id, limit, 0)[1].window(limit)
    except valkey.Away:
        return None


@cache
def _script() -> Any:
    return valkey.client().register_script(_SCRIPT)


def _ask(product_id: str, limit: int, amount: int) -> tuple[bool, Counts]:
    """Whether `amount` admits fit, and the counts afterwards. Raises valkey.Away.

    The counts are Valkey's word, within bounds: a count that no admit can have made is removed, and counting begins anew.
    """
    # Keys as in the library, but without the limit in their name: a changed limit must not start a new count. The braces put
    # both keys on one node of a Valkey cluster.
    key = f"LIMITS:{{admits/{product_id}}}"
    keys = {f"{key}/-1": "string", key: "string"}
    return valkey.ask(lambda client: _count(client, [*keys], limit, amount), keys, numbers=keys)


def _count(client: redis.Redis, keys: list[str], limit: int, amount: int) -> tuple[bool, Counts]:
    fits, previous, previous_ms, current, current_ms = _script()(keys, [limit, MINUTE_S, amount], client)
    return bool(fits), Counts(*_read(previous, previous_ms), *_read(current, current_ms))


def _read(count: bytes | None, left_ms: int) -> tuple[int, float]:
    """A count, and the seconds until it ends. Raises valkey.Spoilt for a count that does not end, or is no count."""
    if count is None:
        return 0, 0.0
    if not count.isdigit() or len(count) > LONGEST or not 0 <= left_ms <= 2 * MINUTE_S * 1000:
        raise valkey.Spoilt("a count of admits has no number, or no end")
    return int(count), left_ms / 1000


# -- while Valkey is away ----------------------------------------------------------------------------------------------

_uncounted = 0
_log_after = 0.0
_lock = threading.Lock()


def _pass_uncounted(error: str) -> None:
    """Count an unlimited admit; log the number of unlimited admits at once, and then every LOG_EVERY_S seconds at most."""
    global _uncounted, _log_after
    with _lock:
        _uncounted += 1
        if time.monotonic() < _log_after:
            return
        passed, _uncounted, _log_after = _uncounted, 0, time.monotonic() + LOG_EVERY_S
    log.warning("rate_limiter_unavailable", error=error, uncounted_admits=passed)


def _tell_rest() -> None:
    """Log the number of unlimited admits not logged yet, once Valkey is back."""
    global _uncounted
    with _lock:
        passed, _uncounted = _uncounted, 0
    if passed:
        log.warning("rate_limiter_back", uncounted_admits=passed)
