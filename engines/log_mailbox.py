"""Passes an engine's last log lines from a worker to the requesting web process, by a key of Valkey, read once.

The lines are kept nowhere else, and in Valkey for KEPT_S seconds at most.
"""

import json

from common import valkey

KEPT_S = 10
Answer = dict[str, list[str] | str]
"""`{"lines": [...]}`, oldest first, or `{"error": "..."}`."""


def put(token: str, answer: Answer) -> None:
    """Leave the answer for the web process waiting under `token`. Raises redis.RedisError."""
    valkey.client().set(_key(token), json.dumps(answer), ex=KEPT_S)


def take(token: str) -> Answer | None:
    """The answer, which is removed by reading it; None before it has come. Raises redis.RedisError."""
    found = valkey.client().getdel(_key(token))
    return dict(json.loads(found)) if found else None


def _key(token: str) -> str:
    return f"logs:{token}"
