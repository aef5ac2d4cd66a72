"""The leases that this process holds, renewed by one thread, and the watch over a worker that has stopped consuming.

(A Celery worker on Redis can stay alive and take no more messages after a reconnect: celery#8091, celery#10205.)
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import structlog
from django.conf import settings
from django.db import DatabaseError, connection

from engines import operations
from engines.operations import Lease

log = structlog.get_logger(__name__)

T = TypeVar("T")

STALLED_S = 30.0
_held: set[Lease] = set()
_guard = threading.Lock()
_last_claim = time.monotonic()
_renewer: threading.Thread | None = None


@contextmanager
def held(lease: Lease) -> Iterator[None]:
    """Keep the lease renewed for the length of the block."""
    global _last_claim
    with _guard:
        _held.add(lease)
        _last_claim = time.monotonic()
        _start_renewer()
    try:
        yield
    finally:
        with _guard:
            _held.discard(lease)


def count() -> int:
    """How many operations this process has in hand."""
    return len(_held)


def _start_renewer() -> None:
    global _renewer
    if _renewer is None or not _renewer.is_alive():
        _renewer = threading.Thread(target=_renew_forever, name="lease-renewer", daemon=True)
        _renewer.start()


def _renew_forever() -> None:
    while True:
        time.sleep(settings.ENV.lease_renew_s)
        with _guard:
            leases = list(_held)
        _quietly(partial(operations.renew, leases))


def watch(queue: str, concurrency: int) -> None:
    """Start a thread that ends this worker when, with threads free, it has claimed nothing of its queue for STALLED_S."""
    threading.Thread(target=_watch_forever, args=(queue, concurrency), name="stall-watch", daemon=True).start()


def _watch_forever(queue: str, concurrency: int) -> None:
    while True:
        time.sleep(5)
        if time.monotonic() - _last_claim < STALLED_S or len(_held) >= concurrency:
            continue
        if _quietly(partial(_work_is_due, queue)):
            log.error("worker_stalled", idle_s=round(time.monotonic() - _last_claim))
            # Not by SIGKILL, which the first process of a container cannot send itself.
            os._exit(1)  # a supervisor starts the next one; leases run out by themselves


def _work_is_due(queue: str) -> bool:
    """Something had its turn, was sent, and is unclaimed for longer than a healthy worker would ever leave it."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT EXISTS (SELECT 1 FROM engines_operation WHERE state IN ('pending', 'running')"
            " AND due_at < now() - make_interval(secs => %(s)s)"
            " AND (lease_until IS NULL OR lease_until < now() - make_interval(secs => %(s)s))"
            " AND sent_at IS NOT NULL AND queue = %(queue)s)",
            {"s": STALLED_S, "queue": queue},
        )
        return bool(cursor.fetchone()[0])


def _quietly(look: Callable[[], T]) -> T | None:
    """Run a look at the database; one that is away is no reason for this thread to end."""
    try:
        return look()
    except DatabaseError as error:
        log.warning("lease_thread_database_error", error=type(error).__name__)
        return None
    finally:
        connection.close()
