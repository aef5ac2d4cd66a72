"""Where a worker leaves an engine's last lines for the web process that asked for them: a key of Valkey, read once.

The lines are kept nowhere else, and here for KEPT_S seconds at most.
"""

import json

from common import valkey

KEPT_S = 10
Answer = dict[str, list[str] | str]
"""`{"lines": [...]}`, oldest first, or `{"error": "..."}`."""


def put(token: str, answer: Answer) -> None:
    """Leave the answer for whoever asked under `token`. Raises redis.RedisError."""
    valkey.client().set(_key(token), json.dumps(answer), ex=KEPT_S)


def take(token: str) -> Answer | None:
    """The answer, once; None while there is none. Raises redis.RedisError."""
    found = valkey.client().getdel(_key(token))
    return dict(json.loads(found)) if found else None


def _key(token: str) -> str:
    return f"logs:{token}"
