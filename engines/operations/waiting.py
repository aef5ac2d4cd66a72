"""Waiting for the end of an operation, without holding a database connection."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import redis
import structlog
from django.db import connection

from common import compute_permit, valkey
from common.settings import settings
from common.shares import LentPlaces, Place
from engines.errors import NoPlaceToWait, Unfinished, Unsuccessful
from engines.models import Kind, Operation, OperationState

log = structlog.get_logger(__name__)
POLL_S = 0.25
_places = LentPlaces(settings.ENV.waiters)
_places_of_destroys = LentPlaces(settings.ENV.waiters // 2)
FREED_S = 1.0  # time in which a request gives its place back after its operation was superseded


def announce(operation_id: UUID) -> None:
    """Wake the requests that wait for the operation. Without Valkey, they notice its end up to POLL_S seconds later."""
    try:
        valkey.client().publish(_channel(operation_id), "ended")
    except redis.RedisError:
        log.info("operation_not_announced", operation_id=str(operation_id))


def wait(operation_id: UUID, timeout_s: float) -> Operation:
    """The operation after its end, or after `timeout_s` seconds.

    Raises NoPlaceToWait when too many requests of the process wait: at once, or later, when the product has more places than
    another product that wants to wait. Gives the database connection back between reads; must not be called inside a
    transaction.
    """
    operation = Operation.objects.select_related("engine").get(pk=operation_id)
    if not operation.is_open or timeout_s <= 0:
        return operation
    deadline = time.monotonic() + timeout_s
    compute_permit.release()
    connection.close()
    with _place(operation) as place:
        return _wait(operation, place, deadline)


@contextmanager
def _place(operation: Operation) -> Iterator[Place]:
    """A place to wait, which the product of the operation has during the block. Raises NoPlaceToWait."""
    product_id = operation.engine.product_id
    place = _take(operation.kind == Kind.DESTROY, product_id)
    if place is None:
        log.warning("product_at_its_share", product_id=str(product_id), of="waiting")
        raise NoPlaceToWait(operation)
    try:
        yield place
    finally:
        place.give_back()


def _take(is_destroy: bool, product_id: UUID) -> Place | None:
    """A place to wait for the product, or None.

    Nothing may hold a destroy up: destroys have places of their own. When all of them are taken, a destroy waits up to FREED_S
    seconds for the place of the request whose operation it superseded, which is about to give its place back.
    """
    if not is_destroy:
        return _places.take(product_id)
    return _places_of_destroys.take(product_id) or _places.take(product_id, FREED_S)


def finish(operation: Operation, timeout_s: float) -> Operation:
    """The succeeded operation.

    Raises Unfinished after `timeout_s` seconds, NoPlaceToWait as `wait` does, Unsuccessful if it failed or was superseded.
    """
    ended = wait(operation.pk, timeout_s)
    if ended.is_open:
        raise Unfinished(ended)
    if ended.state != OperationState.SUCCEEDED:
        raise Unsuccessful(ended)
    return ended


def _wait(operation: Operation, place: Place, deadline: float) -> Operation:
    with _Bell(operation.pk) as bell:
        while (left := deadline - time.monotonic()) > 0:
            operation.refresh_from_db()
            if not operation.is_open:
                return operation
            if place.is_called_back:
                raise NoPlaceToWait(operation)
            connection.close()
            bell.sleep(min(POLL_S, left))
    operation.refresh_from_db()
    return operation


class _Bell:
    """Sleeps until the end of the operation is announced, or the time is over; without Valkey, until the time is over.

    Whoever reaches Valkey can announce anything: an announcement is a hint to look at PostgreSQL. After a false announcement the
    bell sleeps for the whole time, because false ones in great number would make as many reads.
    """

    def __init__(self, operation_id: UUID) -> None:
        self._channel = _channel(operation_id)
        self._pubsub = valkey.client().pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
        self._works = True
        self._rang = False

    def __enter__(self) -> "_Bell":
        self._try(lambda: self._pubsub.subscribe(self._channel))
        self._try(lambda: self._pubsub.get_message(timeout=valkey.TIMEOUT_S))  # confirms: no later message is missed
        return self

    def __exit__(self, *exc: object) -> None:
        self._try(self._pubsub.close)

    def sleep(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        heard = self._works and not self._rang and self._try(lambda: self._pubsub.get_message(timeout=seconds))
        self._rang = self._rang or bool(heard)  # an operation ends once: if it is still open, the announcement was false
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
