"""The operation's row: opened, sent, claimed, leased, waited for. What it does to an engine is `worker`'s and `lifecycle`'s.

Every time here is the database's clock. An attempt number is a fencing token: each write of a worker names its attempt, and
hits nothing once another worker has claimed the operation or a destroy has superseded it.
"""

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import redis
import structlog
from django.db import connection, transaction
from django.db.models.functions import Now

from audit.actors import Actor
from common import compute_permit, context, valkey
from common.settings import settings
from engines import queues
from engines.errors import OperationInProgress, OperationNotFound, Unfinished, Unsuccessful
from engines.models import OPEN, Engine, Kind, Operation, OperationState
from policy.models import Product

log = structlog.get_logger(__name__)

POLL_S = 0.25


class LeaseLost(Exception):
    """The operation is another worker's now, or superseded: drop everything, write nothing."""


@dataclass(frozen=True)
class Lease:
    """A worker's right to carry out one attempt of an operation."""

    operation_id: UUID
    attempt: int
    started: datetime  # of this attempt, database clock
    is_exhausted: bool = False  # too many attempts before this one died in the middle
    is_last: bool = False  # a backend that does not answer has been waited for long enough

    @property
    def params(self) -> dict[str, Any]:
        """For the WHERE of every write: `id = %(op_id)s AND attempt = %(op_attempt)s AND state = 'running'`."""
        return {"op_id": self.operation_id, "op_attempt": self.attempt}


HELD = "id = %(op_id)s AND attempt = %(op_attempt)s AND state = 'running'"


# -- intent and sending ------------------------------------------------------------------------------------------------


def open(  # noqa: A001 (operations.open reads as what it is)
    engine: Engine,
    kind: Kind,
    *,
    by: Actor,
    operation_id: UUID | None = None,
    incarnation: int | None = None,
    params: Mapping[str, Any] | None = None,
) -> Operation:
    """Insert a pending operation and send it on commit, or join the open one when it is the same.

    The caller holds the engine's lock, and gives the id when rows written before name it. Raises OperationInProgress when another
    one is open.
    """
    same = dict(params or {})
    if (current := join(engine, kind, same)) is not None:
        return current
    queue = queues.choose(kind, by)
    operation = Operation.objects.create(
        pk=operation_id or uuid4(),
        engine=engine,
        kind=kind,
        queue=queue,
        params=same,
        actor=by,
        incarnation=incarnation or engine.incarnation,
        request_id=context.request_id.get(),
        sent_at=Now(),
    )
    transaction.on_commit(lambda: queues.send(operation.pk, queue), robust=True)
    return operation


def join(engine: Engine, kind: Kind, params: Mapping[str, Any]) -> Operation | None:
    """The engine's open operation when it is the same; None when none is open. Raises OperationInProgress for another."""
    current = find_open(engine)
    if current is None or (current.kind, current.params) == (kind, params):
        return current
    raise OperationInProgress(current.kind, current.pk)


def find_open(engine: Engine) -> Operation | None:
    """The engine's open operation, if there is one."""
    return Operation.objects.filter(engine=engine, state__in=OPEN).first()


def supersede(operation: Operation, *, only_unclaimed: bool = False) -> bool:
    """End an open operation before it is done; its fencing token is void from here on. False when it had ended by itself."""
    states = (OperationState.PENDING,) if only_unclaimed else OPEN
    hit = Operation.objects.filter(pk=operation.pk, state__in=states).update(
        state=OperationState.SUPERSEDED, finished_at=Now(), lease_until=None
    )
    if hit:
        transaction.on_commit(lambda: _over(operation.pk), robust=True)
    return bool(hit)


# -- claim, lease, fence -----------------------------------------------------------------------------------------------


def claim(operation_id: UUID) -> Lease | None:
    """Take the lease of a due operation that nobody holds; None when there is nothing to claim, or no room for it yet.

    One that finds no room counts as not sent: `queues.dispatch` sends it when its turn has come.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            f"""{queues.LOCK}
            UPDATE engines_operation o
            SET state = 'running', attempt = attempt + 1, attempt_started_at = clock_timestamp(),
                lease_until = clock_timestamp() + make_interval(secs => %(lease)s),
                steps = steps || jsonb_build_object('step', 'claimed', 'at', clock_timestamp(), 'attempt', attempt + 1)
            FROM engines_engine e WHERE o.id = %(id)s AND e.id = o.engine_id AND {queues.READY} AND {queues.ROOM}
            RETURNING attempt, attempt_started_at, attempt - returned > %(most)s,
                (o.steps -> 0 ->> 'at')::timestamptz < clock_timestamp() - make_interval(secs => %(give_up)s);
            UPDATE engines_operation o SET sent_at = NULL WHERE id = %(id)s AND {queues.READY}
            """,
            {
                **queues.params(),
                "id": operation_id,
                "lease": settings.ENV.lease_s,
                "most": settings.ENV.operation_max_attempts,
                "give_up": settings.ENV.operation_give_up_s,
            },
        )
        cursor.nextset()  # past the lock's
        row = cursor.fetchone()
    return Lease(operation_id, *row) if row else None


def renew(leases: list[Lease]) -> None:
    """Extend the leases by the full length, those of them that still hold and were not given back meanwhile."""
    if not leases:
        return
    with connection.cursor() as cursor:
        cursor.execute(
            """
            UPDATE engines_operation o SET lease_until = clock_timestamp() + make_interval(secs => %s)
            FROM unnest(%s::uuid[], %s::int[]) AS held(id, attempt)
            WHERE o.id = held.id AND o.attempt = held.attempt AND o.state = 'running' AND o.lease_until IS NOT NULL
            """,
            [settings.ENV.lease_s, [lease.operation_id for lease in leases], [lease.attempt for lease in leases]],
        )


def step(lease: Lease, name: str) -> None:
    """Note that the attempt has come to `name`. Raises LeaseLost when it is not ours any more: call before every backend verb."""
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE engines_operation SET steps = steps || jsonb_build_object("
            f"'step', %(step)s::text, 'at', clock_timestamp(), 'attempt', attempt) WHERE {HELD}",
            {**lease.params, "step": name},
        )
        if cursor.rowcount == 0:
            raise LeaseLost(lease.operation_id)


def check(lease: Lease) -> None:
    """Raise LeaseLost when the attempt is not ours any more."""
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT 1 FROM engines_operation WHERE {HELD}", lease.params)
        if cursor.fetchone() is None:
            raise LeaseLost(lease.operation_id)


def release(lease: Lease, *, delay_s: float) -> bool:
    """Give lease and place back because the backend did not answer; the operation is due again after `delay_s`.

    False when the attempt is not ours any more.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE engines_operation SET lease_until = NULL, sent_at = NULL, returned = returned + 1,"
            f" due_at = clock_timestamp() + make_interval(secs => %(delay)s) WHERE {HELD}",
            {**lease.params, "delay": delay_s},
        )
        held = bool(cursor.rowcount == 1)
    queues.dispatch()
    return held


def close(lease: Lease, state: OperationState, *, error: tuple[str, str] = ("", "")) -> bool:
    """End the operation as `state`, within the caller's transaction; False when the attempt is not ours any more."""
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE engines_operation SET state = %(state)s, finished_at = clock_timestamp(), lease_until = NULL,"
            " error_code = %(code)s, error_message = %(message)s,"
            " steps = steps || jsonb_build_object('step', %(state)s::text, 'at', clock_timestamp(), 'attempt', attempt)"
            f" WHERE {HELD}",
            {**lease.params, "state": state, "code": error[0], "message": error[1]},
        )
        held = bool(cursor.rowcount == 1)
    if held:
        transaction.on_commit(lambda: _over(lease.operation_id), robust=True)
    return held


def _over(operation_id: UUID) -> None:
    """Tell who waits for the operation, and give its place to the next."""
    announce(operation_id)
    queues.dispatch()


# -- waiting -----------------------------------------------------------------------------------------------------------

_waiters = threading.BoundedSemaphore(settings.ENV.waiters)
_destroyers = threading.BoundedSemaphore(settings.ENV.waiters // 2)
FREED_S = 1.0  # within which a request gives its place back whose operation was superseded


def announce(operation_id: UUID) -> None:
    """Wake whoever waits for the operation; a Valkey that is away costs them at most POLL_S."""
    try:
        valkey.client().publish(_channel(operation_id), "ended")
    except redis.RedisError:
        log.info("operation_not_announced", operation_id=str(operation_id))


def wait(operation_id: UUID, timeout_s: float) -> Operation:
    """The operation once it has ended, or as it is after `timeout_s` seconds, or at once when too many wait in this process.

    Gives the database connection back between looks; must not be called inside a transaction.
    """
    operation = Operation.objects.get(pk=operation_id)
    if not operation.is_open or timeout_s <= 0:
        return operation
    deadline = time.monotonic() + timeout_s
    places = _take_place(operation)
    if places is None:
        return operation
    try:
        compute_permit.release()
        return _wait(operation, deadline)
    finally:
        places.release()


def _take_place(operation: Operation) -> threading.BoundedSemaphore | None:
    """Of which places the request has got one; None when too many wait.

    Nothing is to hold a destroy up, so there are places for it alone. Where those are taken, too, it gets the one of the request
    whose operation it has superseded, which is about to give that back.
    """
    if operation.kind != Kind.DESTROY:
        return _waiters if _waiters.acquire(blocking=False) else None
    if _destroyers.acquire(blocking=False):
        return _destroyers
    compute_permit.release()
    connection.close()
    return _waiters if _waiters.acquire(timeout=FREED_S if settings.ENV.waiters else 0) else None


def finish(operation: Operation, timeout_s: float) -> Operation:
    """The operation once it has succeeded. Raises Unfinished after `timeout_s`, Unsuccessful when it failed or was superseded."""
    ended = wait(operation.pk, timeout_s)
    if ended.is_open:
        raise Unfinished(ended)
    if ended.state != OperationState.SUCCEEDED:
        raise Unsuccessful(ended)
    return ended


def _wait(operation: Operation, deadline: float) -> Operation:
    with _Bell(operation.pk) as bell:
        while (left := deadline - time.monotonic()) > 0:
            operation.refresh_from_db()
            if not operation.is_open:
                return operation
            connection.close()
            bell.sleep(min(POLL_S, left))
    operation.refresh_from_db()
    return operation


class _Bell:
    """Sleeps until the operation is announced, or the time is over; just sleeps while Valkey is away."""

    def __init__(self, operation_id: UUID) -> None:
        self._channel = _channel(operation_id)
        self._pubsub = valkey.client().pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
        self._works = True

    def __enter__(self) -> "_Bell":
        self._try(lambda: self._pubsub.subscribe(self._channel))
        self._try(lambda: self._pubsub.get_message(timeout=valkey.TIMEOUT_S))  # the confirmation: from here on nothing is missed
        return self

    def __exit__(self, *exc: object) -> None:
        self._try(self._pubsub.close)

    def sleep(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        heard = self._works and self._try(lambda: self._pubsub.get_message(timeout=seconds))
        if not heard:
            time.sleep(max(0.0, until - time.monotonic()))

    def _try(self, call: Any) -> Any:
        try:
            return call()
        except (redis.RedisError, OSError):
            self._works = False
            return None


def _channel(operation_id: UUID) -> str:
    return f"operation:{operation_id}"


def get(product: Product, operation_id: UUID) -> Operation:
    """The product's operation with this id. Raises OperationNotFound."""
    operation = Operation.objects.filter(pk=operation_id, engine__product=product).select_related("engine").first()
    if operation is None:
        raise OperationNotFound(f"No operation of yours has the id {operation_id}.")
    return operation
