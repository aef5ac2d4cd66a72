"""Passes an engine's last log lines from a worker to the requesting web process, by a key of Valkey, read once.

The lines are kept nowhere else, and in Valkey for KEPT_S seconds at most. They are encrypted: otherwise, whoever reaches Valkey
could read them, or put other lines in their place. The engine and the request are encrypted with them: nobody can hand a product
the lines of another product's engine, not even by asking a worker for them.
"""

import json
from functools import cache
from typing import Any
from uuid import UUID

import structlog
from cryptography.fernet import InvalidToken

from common import valkey
from policy import crypto

WAIT_S = 5.0  # that a web process waits for an answer
KEPT_S = 10
MAX_LINES = 1000  # lines of an answer
Answer = dict[str, list[str] | str]
"""`{"lines": [...]}`, oldest first, or `{"error": "..."}`, the code of a BackendError."""
log = structlog.get_logger(__name__)

# Returns the answer and removes it; removes, without returning it, what no worker can have left. KEYS: the key.
# 10 MB: the most that `worker.logs` hands over, as JSON and encrypted.
_TAKE = """
local kind = redis.call('type', KEYS[1])['ok']
local found = kind == 'string' and redis.call('strlen', KEYS[1]) < 10000000 and redis.call('get', KEYS[1])
if kind ~= 'none' then redis.call('del', KEYS[1]) end
return found
"""


def put(token: UUID, engine_id: UUID, answer: Answer) -> None:
    """Leave the answer for the web process that waits for the engine's lines under `token`. Raises redis.RedisError."""
    named = {"token": str(token), "engine_id": str(engine_id), **answer}
    valkey.client().set(_key(token), crypto.encrypt(json.dumps(named, ensure_ascii=False)), ex=KEPT_S)


def take(token: UUID, engine_id: UUID) -> Answer | None:
    """The answer, which is removed by reading it; None before it has come. Raises redis.RedisError."""
    found = _script()([_key(token)])
    if found is None:
        return None
    try:
        answer = dict(json.loads(crypto.decrypt(found.decode())))
    except (InvalidToken, ValueError):
        answer = {}
    if (answer.pop("token", None), answer.pop("engine_id", None)) == (str(token), str(engine_id)):
        return answer
    log.warning("logs_dropped", engine_id=str(engine_id))
    return None


@cache
def _script() -> Any:
    return valkey.client().register_script(_TAKE)


def _key(token: UUID) -> str:
    return f"logs:{token}"
