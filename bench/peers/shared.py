"""Code shared by both applications: the environment, the limiter's script, Fernet, and the body of an admit."""

import math
import os
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote, urlsplit

from cryptography.fernet import Fernet, MultiFernet
from limits.storage import RedisStorage
from redis.asyncio import Redis

CONNECTIONS = int(os.environ.get("BENCH_CONNECTIONS", "16"))
URL_TEMPLATE = os.environ.get("BENCH_URL_TEMPLATE", "http://127.0.0.1:{port}")
DISK_MB = int(os.environ.get("BENCH_DISK_MB", "1024"))
MINUTE_S = 60
REASONS = {
    "provisioning": "engine_provisioning",
    "sleeping": "engine_sleeping",
    "stopped": "engine_stopped",
    "failed": "engine_unhealthy",
    "destroying": "engine_destroying",
}
FERNET = MultiFernet([Fernet(key.strip()) for key in os.environ["BENCH_MASTER_KEYS"].split(",")])

# The library's two scripts for a sliding window in a single round trip: count, then read. As in policy/rate_limit.py.
SCRIPT = f"""
local function acquire(ARGV)
{RedisStorage.SCRIPT_ACQUIRE_SLIDING_WINDOW.decode()}
end
local function window(ARGV)
{RedisStorage.SCRIPT_SLIDING_WINDOW.decode()}
end
local fits = acquire(ARGV)
local counts = window({{ARGV[2]}})
return {{fits and 1 or 0, counts[1], counts[2], counts[3], counts[4]}}
"""


def database() -> dict[str, Any]:
    """Arguments of asyncpg.connect: the URL's host is the percent-encoded folder of a socket, or a name."""
    parts = urlsplit(os.environ["BENCH_DATABASE_URL"])
    host = parts.netloc.rpartition("@")[2].partition(":")[0]
    return {
        "host": unquote(host),
        "port": parts.port or 5432,
        "user": unquote(parts.username or ""),
        "password": unquote(parts.password or ""),
        "database": parts.path.lstrip("/"),
    }


class Limiter:
    """The rate limit of a product, shared through Valkey."""

    def __init__(self) -> None:
        self.valkey = Redis.from_url(os.environ["BENCH_REDIS_URL"], socket_timeout=2, socket_connect_timeout=2)
        self.script = self.valkey.register_script(SCRIPT)

    async def hit(self, product_id: str, limit: int) -> tuple[bool, dict[str, str]]:
        """Count an admit. Returns whether the limit (admits per minute) allows it, and the `RateLimit-*` headers."""
        key = f"LIMITS:{{admits/{product_id}}}"
        fits, previous, previous_ms, current, current_ms = await self.script([f"{key}/-1", key], [limit, MINUTE_S, 1])
        return bool(fits), _headers(limit, int(previous or 0), max(0, previous_ms or 0) / 1000, int(current or 0), current_ms)


def _headers(limit: int, previous: int, previous_ends_s: float, current: int, current_ms: int | None) -> dict[str, str]:
    used = math.floor(previous * previous_ends_s / MINUTE_S) + current
    remaining = max(0, limit - used)
    target = limit - remaining
    if current < target and previous:
        reset_s = previous_ends_s - MINUTE_S * (target - current) / previous
    else:
        reset_s = max(0, current_ms or 0) / 1000 - MINUTE_S * target / max(current, target, 1)
    return {
        "RateLimit-Limit": str(limit),
        "RateLimit-Remaining": str(remaining),
        "RateLimit-Reset": str(max(1, math.ceil(reset_s))),
    }


def iso(moment: datetime | None) -> str | None:
    """A time as Roundhouse writes it."""
    return None if moment is None else moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def shown(engine: Any, policy: dict[str, Any]) -> dict[str, Any]:
    """The body of an admit of `engine`, a row or an object with the columns as attributes; `policy` is the product's."""
    limit_mb = policy.get("disk_mb", DISK_MB)
    return {
        "admitted": True,
        "engine": {
            "engine_id": str(engine.id),
            "user_id": engine.user_id,
            "status": engine.status,
            "url": URL_TEMPLATE.format(port=engine.port),
            "engine_version": engine.engine_version,
            "created_at": iso(engine.created_at),
            "last_health_at": iso(engine.last_health_at),
            "disk": {
                "used_mb": engine.disk_used_mb,
                "limit_mb": limit_mb,
                "exceeded": (engine.disk_used_mb or 0) > limit_mb,
                "measured_at": iso(engine.disk_measured_at),
            },
            "api_key": FERNET.decrypt(engine.key_ciphertext).decode(),
        },
    }


def refused(status: str | None, is_busy: bool) -> str:
    """The reason of a refused admit; empty when the engine may be called. `status` is None when no engine exists."""
    if status is None:
        return "engine_not_found"
    if status != "running":
        return REASONS[status]
    return "engine_busy" if is_busy else ""
