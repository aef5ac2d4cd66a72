"""The admit rate limit: one sliding window per product, shared by every process through Valkey.

While Valkey is away admits go on unlimited: a limiter that cannot count must not stop every user of every product.
"""

import math
import random
import threading
import time
from dataclasses import dataclass
from functools import cache
from typing import Any

import redis
import structlog
from limits.storage import RedisStorage

from policy import valkey
from policy.errors import RateLimited
from policy.rules import Policy

MINUTE_S = 60
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


@dataclass(frozen=True)
class Window:
    """What is left of a limit: `remaining` admits fit now, and one more than that in `reset_s` whole seconds."""

    limit: int
    remaining: int
    reset_s: int

    def headers(self) -> dict[str, str]:
        """As in draft-ietf-httpapi-ratelimit-headers, in the form with three headers."""
        return {
            "RateLimit-Limit": str(self.limit),
            "RateLimit-Remaining": str(self.remaining),
            "RateLimit-Reset": str(self.reset_s),
        }


@dataclass(frozen=True)
class _Counts:
    """Admits of the last two minutes, each count with the seconds until it expires; the older fades out over its last minute."""

    previous: int
    previous_ends_s: float
    current: int
    current_ends_s: float

    def used(self) -> int:
        return math.floor(self.previous * self.previous_ends_s / MINUTE_S) + self.current

    def fewer_in_s(self, count: int) -> float:
        """Seconds until less than `count` of them are in the window."""
        if self.current < count and self.previous:
            return self.previous_ends_s - MINUTE_S * (count - self.current) / self.previous
        turns_s = self.current_ends_s - MINUTE_S  # from then on the present minute is the older one
        return turns_s + MINUTE_S * (1 - count / max(self.current, count))


def hit(product_id: str, policy: Policy) -> Window | None:
    """Count one admit of the product; returns what is left, None without a `rate_limit_rpm` or while Valkey is away.

    Raises RateLimited, and counts nothing, once the limit's admits of the last minute are used up.
    """
    limit = policy.get("rate_limit_rpm")
    if limit is None:
        return None
    if limit == 0:
        raise refusal(Window(0, 0, MINUTE_S))
    try:
        fits, counts = valkey.ask(lambda client: _count(client, product_id, limit, 1))
    except valkey.Away as away:
        _pass_uncounted(str(away))
        return None
    if _uncounted:
        _tell_rest()
    window = _window(limit, counts)
    if not fits:
        raise refusal(window)
    return window


def look(product_id: str, policy: Policy) -> Window | None:
    """What is left, without counting anything; None where `hit` gives None."""
    limit = policy.get("rate_limit_rpm")
    if limit is None or limit == 0:
        return None if limit is None else Window(0, 0, MINUTE_S)
    try:
        return _window(limit, valkey.ask(lambda client: _count(client, product_id, limit, 0))[1])
    except valkey.Away:
        return None


def refusal(window: Window) -> RateLimited:
    """The refusal by a window that is full. It says when to come back: spread, so that not all who were refused do at once."""
    jitter_s = random.uniform(0, max(1, window.reset_s / 10))  # noqa: S311 (not for secrets)
    return RateLimited(
        "rate_limit_rpm", window.limit, window.limit, retry_after_s=window.reset_s + round(jitter_s), window=window
    )


@cache
def _script() -> Any:
    return valkey.client().register_script(_SCRIPT)


def _count(client: redis.Redis, product_id: str, limit: int, amount: int) -> tuple[bool, _Counts]:
    # The library's keys, but without the limit: lowering that must not start a new count. Braces keep both on one node.
    key = f"LIMITS:{{admits/{product_id}}}"
    fits, previous, previous_ms, current, current_ms = _script()([f"{key}/-1", key], [limit, MINUTE_S, amount], client)
    ends_s = (max(0, previous_ms or 0) / 1000, max(0, current_ms or 0) / 1000)
    return bool(fits), _Counts(int(previous or 0), ends_s[0], int(current or 0), ends_s[1])


def _window(limit: int, counts: _Counts) -> Window:
    used = counts.used()
    if not used:
        return Window(limit, limit, 0)
    remaining = max(0, limit - used)
    return Window(limit, remaining, max(1, math.ceil(counts.fewer_in_s(limit - remaining))))


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
