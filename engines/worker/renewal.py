"""Renews the leases of the process in a thread, and ends a worker that takes no messages although Valkey answers.

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

from common import valkey
from common.outages import POSTGRESQL
from common.settings import settings
from engines import operations
from engines.models import Operation
from engines.operations import Lease

log = structlog.get_logger(__name__)

T = TypeVar("T")

STALLED_LEASES = 2  # lengths of a lease: a healthy worker claims due work within that time
PAUSE_S = 5.0  # that a look may take, beside the pauses between looks: as long as the pool waits for a connection
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


def watch(queues: Sequence[str]) -> None:
    """Start a thread that ends the worker once it is stalled: see `Stall`."""
    threading.Thread(target=_watch_forever, args=(Stall(queues),), name="stall-watch", daemon=True).start()


def _watch_forever(stall: "Stall") -> None:
    while True:
        time.sleep(settings.ENV.lease_renew_s)
        if stall.look() < stalled_s():
            continue
        log.error("worker_stalled", idle_s=round(stall.seconds))
        # SIGKILL would not work: the first process of a container cannot send SIGKILL to itself.
        os._exit(1)  # a supervisor starts the next worker


def stalled_s() -> float:
    """Seconds after which a worker that takes no due work counts as stalled. An operation is sent again within that time."""
    return float(max(STALLED_LEASES * settings.ENV.lease_s, 2 * settings.ENV.resend_after_s))


class Stall:
    """How long the worker of `queues` has taken nothing although it could: its looks without interruption.

    At each look Valkey answered, the worker held no lease, and work was due. A look at which one of these did not hold begins
    anew, and so does a look after a pause of the process itself, which was frozen, or on a machine that slept.
    """

    def __init__(self, queues: Sequence[str]) -> None:
        self.seconds = 0.0
        self._queues = list(queues)
        self._looked = time.monotonic()

    def look(self) -> float:
        """Look once more; returns for how many seconds the worker has been stalled, 0 if it is not."""
        before, self._looked = self._looked, time.monotonic()
        passed_s = self._looked - before
        went_on = passed_s < 2 * settings.ENV.lease_renew_s + PAUSE_S
        is_idle = went_on and not _held and _last_claim < before
        is_stalled = is_idle and _broker_answers() and bool(_quietly(partial(_work_is_due, self._queues)))
        self.seconds = self.seconds + passed_s if is_stalled else 0.0
        return self.seconds


def _broker_answers() -> bool:
    try:
        return bool(valkey.ask(lambda client: client.ping()))
    except valkey.Away:
        return False


def _work_is_due(queues: Sequence[str]) -> bool:
    """Whether an operation with room has stayed unclaimed for `stalled_s()` seconds, and was sent within that time.

    An operation that nobody sends again, because beat is away, says nothing about the worker.
    """
    long_ago = Now() - timedelta(seconds=stalled_s())
    sent = Operation.objects.open().filter(due_at__lt=long_ago, sent_at__gt=long_ago, queue__in=queues)
    return sent.filter(Q(lease_until=None) | Q(lease_until__lt=long_ago)).exists()


def _quietly(look: Callable[[], T]) -> T | None:
    """Run a query; None while PostgreSQL is away: the thread must outlive an outage."""
    try:
        found = look()
    except Error as error:
        POSTGRESQL.failed(error)
        return None
    finally:
        connection.close()
    POSTGRESQL.answered()
    return found
