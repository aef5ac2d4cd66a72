"""The last lines that an engine wrote. Only workers reach a backend, so one reads them and hands them over through Valkey.

They are kept nowhere: what a worker leaves is gone once it is read, or after KEPT_S seconds.
"""

import json
import threading
import time
from collections.abc import Sequence
from uuid import UUID, uuid4

import redis
import structlog
from django.db import connection
from kombu.exceptions import OperationalError

from common import valkey
from engines import backends
from engines.backends.base import BackendError, Ref
from engines.errors import LogsUnavailable
from engines.models import Engine

WAIT_S = 5.0
KEPT_S = 10
POLL_S = 0.05
TAIL, MAX_TAIL = 100, 1000  # lines
MAX_LINE, MAX_TEXT = 4_096, 1_000_000  # characters of a line, and of all lines

# Beside the waiters of operations: however many follow logs, most threads of a web process go on admitting.
_waiters = threading.BoundedSemaphore(2)
log = structlog.get_logger(__name__)


def fetch(engine: Engine, tail: int) -> list[str]:
    """Ask a worker for the lines and wait for them. Raises LogsUnavailable after WAIT_S seconds, BackendError."""
    if not _waiters.acquire(blocking=False):
        raise LogsUnavailable("Too many callers are waiting for logs; try again in a few seconds.")
    try:
        answer = _ask(engine.pk, tail)
    finally:
        _waiters.release()
    if "error" in answer:
        raise BackendError(answer["error"])
    return list(answer["lines"])


def _ask(engine_id: UUID, tail: int) -> dict[str, list[str] | str]:
    from engines.tasks import read_logs  # tasks import this module

    connection.close()  # nobody needs it while we wait
    token = str(uuid4())
    deadline = time.monotonic() + WAIT_S
    try:
        # Expires, unlike what carries out an operation: once the caller is gone nobody wants the lines.
        read_logs.apply_async((str(engine_id), tail, token), expires=WAIT_S, retry=False)
        while time.monotonic() < deadline:
            if found := valkey.client().getdel(_key(token)):
                return dict(json.loads(found))
            time.sleep(POLL_S)
    except (OperationalError, redis.RedisError, OSError) as error:
        raise LogsUnavailable("Logs cannot be fetched just now; try again in a few seconds.") from error
    raise LogsUnavailable("No worker was free to read the logs; try again in a few seconds.")


def hand_over(engine_id: UUID, tail: int, token: str) -> None:
    """Read the lines, as a worker, and leave them for whoever asked under `token`."""
    engine = Engine.objects.filter(pk=engine_id, destroyed_at=None).first()
    answer: dict[str, list[str] | str] = {"lines": []}
    if engine is not None:
        try:
            answer = {"lines": _cut(backends.get().logs(Ref(engine.pk, engine.incarnation), tail=tail))}
        except BackendError as error:
            log.warning("logs_not_read", engine_id=str(engine_id), error=str(error))
            answer = {"error": str(error)}
    valkey.client().set(_key(token), json.dumps(answer), ex=KEPT_S)


def _cut(lines: Sequence[str]) -> list[str]:
    """The newest of the lines, each cut to MAX_LINE, that are MAX_TEXT together; NUL, which no terminal wants, left out."""
    cut: list[str] = []
    left = MAX_TEXT
    for line in reversed(lines):
        kept = line[:MAX_LINE].replace("\0", "")
        left -= len(kept) + 1
        if left < 0:
            break
        cut.append(kept)
    return cut[::-1]


def _key(token: str) -> str:
    return f"logs:{token}"
