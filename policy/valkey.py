"""The process's connections to Valkey: one pool, short time-outs, so that a frozen Valkey delays nobody for long."""

from functools import cache

import redis
from django.conf import settings

TIMEOUT_S = 0.1


@cache
def client() -> redis.Redis:
    """A client shared by all threads; every command raises redis.RedisError within about TIMEOUT_S when Valkey is away."""
    return redis.Redis.from_url(
        settings.REDIS_URL, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S, health_check_interval=30, retry=None
    )
