"""Renews the leases of the process in a thread, and ends a worker that has stopped consuming its queues.

The same thread gives back the leases of attempts that an absence of PostgreSQL has cut short.

(After a reconnect to Redis, a Celery worker can stay alive and take no more messages: celery#8091, celery#10205.)
"""

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import TypeVar

import structlog
from django.db import Error, connection
from django.db.models import Q
from django.db.models.functions import Now

from common.settings import settings
from engines import operations
from engines.models import Operation
from engines.operations import Lease

log = structlog.get_logger(__name__)

T = TypeVar("T")

STALLED_LEASES = 2  # lengths of a lease: a healthy worker claims due work within that time
_held: set[Lease] = set()
_to_give_back: set[Lease] = set()
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


def give_back(lease: Lease) -> None:
    """Give the lease back as soon as PostgreSQL takes it, so that the attempt does not count. Returns at once.

    The lease is not renewed meanwhile. If it lapses and another worker claims the operation, giving it back hits nothing.
    """
    with _guard:
        _to_give_back.add(lease)


def count() -> int:
    """The number of operations that the process has in hand."""
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
            leases, interrupted = list(_held), list(_to_give_back)
        _quietly(partial(operations.renew, leases))
        for lease in interrupted:
            if _quietly(partial(operations.release, lease, delay_s=0.0)) is not None:
                with _guard:
                    _to_give_back.discard(lease)


def watch(queues: Sequence[str], most: int) -> None:
    """Start a thread that ends the worker after `stalled_s()` seconds without a claim, if work of `queues` is due.

    A worker with `most` operations in hand has no thread for a further operation, and is left alone.
    """
    threading.Thread(target=_watch_forever, args=(list(queues), most), name="stall-watch", daemon=True).start()


def stalled_s() -> float:
    """Seconds without a claim after which a worker with due work counts as stalled."""
    return float(STALLED_LEASES * settings.ENV.lease_s)


def _watch_forever(queues: list[str], most: int) -> None:
    while True:
        time.sleep(settings.ENV.lease_renew_s)
        if time.monotonic() - _last_claim < stalled_s() or len(_held) >= most:
            continue
        if _quietly(partial(_work_is_due, queues)):
            log.error("worker_stalled", idle_s=round(time.monotonic() - _last_claim))
            # SIGKILL would not work: the first process of a container cannot send SIGKILL to itself.
            os._exit(1)  # a supervisor starts the next worker; leases run out by themselves


def _work_is_due(queues: list[str]) -> bool:
    """Whether an operation with room was sent, and has stayed unclaimed for `stalled_s()` seconds."""
    long_ago = Now() - timedelta(seconds=stalled_s())
    sent = Operation.objects.open().filter(due_at__lt=long_ago, sent_at__isnull=False, queue__in=queues)
    return sent.filter(Q(lease_until=None) | Q(lease_until__lt=long_ago)).exists()


def _quietly(look: Callable[[], T]) -> T | None:
    """Run a query, or log its error and return None: the thread must outlive a database that is away."""
    try:
        return look()
    except Error as error:
        log.warning("lease_thread_database_error", error=type(error).__name__)
        return None
    finally:
        connection.close()
