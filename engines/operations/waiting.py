"""Waiting for the end of an operation, without a database connection, and without counting among the busy threads."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import redis
import structlog
from django.db import connection

from common import busy_thread, compute_permit, valkey
from common.settings import settings
from common.shares import LentPlaces, Place, ReservedPlaces
from engines.errors import NoPlaceToWait, Unfinished, Unsuccessful
from engines.models import Kind, Operation, OperationState
from policy import thread_share

log = structlog.get_logger(__name__)
POLL_S = 0.25
CROWD = 32  # callers who wait; more of them look more seldom, so that all together ask PostgreSQL at most 128 times a second
_places = LentPlaces(settings.ENV.waiters)
_places_of_destroys = LentPlaces(busy_thread.MOST_ASIDE)  # never all taken, because fewer callers may wait
_callers = ReservedPlaces(busy_thread.MOST_ASIDE, busy_thread.MOST_ASIDE // 4)  # what the process's memory is for


@dataclass
class _Party:
    """The callers of this process who wait for one operation. They share a place: all of them are told the same."""

    callers: int = 0
    place: Place | None = None
    taking: threading.Lock = field(default_factory=threading.Lock)  # held while a caller takes the place for all


_parties: dict[UUID, _Party] = {}  # by operation
_guard = threading.Lock()  # of `_parties`, and of the numbers of callers


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
    transaction. The thread stands aside: it counts neither among the busy threads nor in its product's share of them.
    """
    operation = Operation.objects.select_related("engine").get(pk=operation_id)
    if not operation.is_open or timeout_s <= 0:
        return operation
    deadline = time.monotonic() + timeout_s
    compute_permit.release()
    connection.close()
    with _place(operation) as place:
        busy_thread.stand_aside()
        thread_share.leave()
        return _wait(operation, place, deadline)


@contextmanager
def _place(operation: Operation) -> Iterator[Place]:
    """A place to wait during the block, shared with all others who wait for the operation. Raises NoPlaceToWait."""
    product_id = operation.engine.product_id
    with _callers.hold(product_id) as may_wait, _in_party(operation.pk) as party:
        with party.taking:
            if may_wait and party.place is None:
                # Nothing may hold a destroy up: destroys have places of their own.
                party.place = (_places_of_destroys if operation.kind == Kind.DESTROY else _places).take(product_id)
            place = party.place
        if place is None or not may_wait:
            log.warning("product_at_its_share", product_id=str(product_id), of="waiting")
            raise NoPlaceToWait(operation)
        yield place


@contextmanager
def _in_party(operation_id: UUID) -> Iterator[_Party]:
    """Be one of the callers who wait for the operation. The last gives the place back; if it was called back, the first does."""
    with _guard:
        party = _parties.setdefault(operation_id, _Party())
        party.callers += 1
    try:
        yield party
    finally:
        with party.taking, _guard:
            party.callers -= 1
            if not party.callers:
                del _parties[operation_id]
            if party.place is not None and (not party.callers or party.place.is_called_back):
                party.place.give_back()
                party.place = None


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
            bell.sleep(min(POLL_S * max(1.0, _callers.taken / CROWD), left))
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
