"""`admit`: whether a user's request may go to the user's engine now. The hot path: two reads, a counter, rarely a write."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from uuid import UUID

from django.db.models import Q
from django.db.models.functions import Now

from audit import actors, trail
from audit.actions import Action
from audit.actors import Actor
from common import statements
from common.settings import settings
from common.statements import Columns
from engines import lifecycle, names, operations
from engines.errors import (
    EngineAlreadyExists,
    EngineAlreadyRunning,
    EngineNotFound,
    EngineNotRunning,
    OperationInProgress,
    Unsuccessful,
)
from engines.gate import Gate
from engines.models import Engine, Kind, Operation, OperationState, Status
from policy import decisions, overrides, rate_limit, refusals
from policy.errors import Denied
from policy.models import Product
from policy.sliding_window import Window

ACTIVE_EVERY = timedelta(seconds=30)
LOOKS = 4  # at an engine that moves while we decide
_gate = Gate(settings.ENV.web_threads // 4 or 1)  # of the hot threads: half may wait for operations, so a quarter is always free
_STALE = Q(last_active_at=None) | Q(last_active_at__lt=Now() - ACTIVE_EVERY)

_ENGINE = Columns(
    Engine, "e", "id", "product_id", "user_id", "status", "seq", "engine_version", "port", "memory_mb", "key_ciphertext",
    "created_at", "last_health_at",
)  # fmt: skip
_LOOK = f"""
SELECT {_ENGINE.sql}, o.id, o.kind,
       e.last_active_at IS NULL OR e.last_active_at < statement_timestamp() - interval '{ACTIVE_EVERY.total_seconds()} seconds'
FROM engines_engine e LEFT JOIN engines_operation o ON o.engine_id = e.id AND o.state IN ('pending', 'running')
WHERE e.product_id = %s AND e.user_id = %s AND e.destroyed_at IS NULL
"""

REASONS = {
    Status.PROVISIONING: "engine_provisioning",
    Status.SLEEPING: "engine_sleeping",
    Status.STOPPED: "engine_stopped",
    Status.FAILED: "engine_unhealthy",
    Status.DESTROYING: "engine_destroying",
}


class Step(StrEnum):
    """What an admit does about an engine as it sees it."""

    ADMIT = "admit"
    REFUSE = "refuse"
    PROVISION = "provision"
    JOIN = "join"  # wait for an open operation that brings the engine up
    CANCEL_SLEEP = "cancel_sleep"
    WAKE = "wake"


@dataclass(frozen=True)
class Seen:
    """An engine as `look` found it, with its open operation; `stale`: its last admit is long enough ago to be noted again."""

    engine: Engine
    open_id: UUID | None
    open_kind: str | None
    stale: bool


@dataclass(frozen=True)
class Admission:
    """The answer: an engine that may be called, or None and why not."""

    engine: Engine | None
    reason: str = ""


Intend = Callable[[Callable[[], Operation]], Operation]
"""Calls what opens (or joins) an operation, or gives the one that an earlier try of the same request has opened."""


@dataclass(frozen=True)
class Wish:
    """Who asks for which engine, what may be done for it, and until when (monotonic clock)."""

    product: Product
    user_id: str
    auto_provision: bool
    auto_wake: bool
    deadline: float
    intend: Intend

    @property
    def by(self) -> Actor:
        return actors.product(self.product.slug)

    def left_s(self) -> float:
        return max(0.0, self.deadline - time.monotonic())


def admit(
    product: Product,
    user_id: str,
    *,
    auto_provision: bool,
    auto_wake: bool,
    timeout_s: float | None = None,
    intend: Intend = lambda intent: intent(),
) -> Admission:
    """Decide, and with the flags do what it takes: provision a missing engine, wake a sleeping one, and wait for it.

    `timeout_s` is how long it may wait, `longest_s()` when not given. Call `count` first. Raises InvalidUserId, what
    `lifecycle.provision` raises, Unfinished, Unsuccessful, and Crowded when another admit has waited long for the same locks.
    """
    user_id = names.check_user_id(user_id)
    deadline = time.monotonic() + (longest_s() if timeout_s is None else timeout_s)
    wish = Wish(product, user_id, auto_provision, auto_wake, deadline, intend)
    seen = look(product, user_id)
    for _ in range(LOOKS):
        if not refusal(seen) or not _pursue(wish, seen):
            break
        seen = look(product, user_id)
    return _conclude(seen)


def readmit(product: Product, user_id: str, operation: Operation, timeout_s: float) -> Admission:
    """Answer an admit that has led to `operation` once more: with that operation's engine as it is now.

    Nothing is counted, and nothing begun. Raises, with an `admit_denied` row, ProductSuspended; EngineNotFound when the engine
    is gone, whether or not the user has another one; Unfinished, Unsuccessful.
    """
    with _recorded(product, user_id):
        decisions.check([decisions.suspended(product.suspension_reason)])
    _finish(operation, timeout_s)
    seen = look(product, user_id)
    if seen is None or seen.engine.pk != operation.engine_id:
        raise EngineNotFound("The engine was destroyed since.")
    return _conclude(seen)


def _conclude(seen: Seen | None) -> Admission:
    reason = refusal(seen)
    if seen is None or reason:
        return Admission(None, reason)
    if seen.stale:
        _mark_active(seen.engine)
    return Admission(seen.engine)


def count(product: Product, user_id: str) -> Window | None:
    """Count an admit against the product's rate limit; returns what is left of that, None where nothing limits.

    Raises InvalidUserId, and with an `admit_denied` row ProductSuspended, RateLimited.
    """
    user_id = names.check_user_id(user_id)
    with _recorded(product, user_id):
        decisions.check([decisions.suspended(product.suspension_reason)])
        return rate_limit.hit(str(product.pk), overrides.in_force(product))


@contextmanager
def _recorded(product: Product, user_id: str) -> Iterator[None]:
    """Whatever refuses an admit within has its row."""
    try:
        yield
    except Denied as refused:
        subject = trail.Subject(product_id=product.pk, product_slug=product.slug, user_id=user_id)
        refusals.record(Action.ADMIT_DENIED, subject, by=actors.product(product.slug), metadata=refused.metadata())
        raise


def longest_s() -> float:
    """How long an admit waits at most."""
    return float(settings.ENV.boot_timeout_s + settings.ENV.wait_s)


def look(product: Product, user_id: str) -> Seen | None:
    """The user's living engine with its open operation, in one read."""
    row = statements.first(_LOOK, [product.pk, user_id])
    return None if row is None else Seen(_ENGINE.build(row[:-3]), *row[-3:])


def refusal(seen: Seen | None) -> str:
    """Why the engine may not be called now; empty when it may."""
    if seen is None:
        return "engine_not_found"
    if seen.engine.status != Status.RUNNING:
        return REASONS[Status(seen.engine.status)]
    return "engine_busy" if seen.open_kind else ""


def plan(seen: Seen | None, *, auto_provision: bool, auto_wake: bool) -> Step:
    """What an admit with these flags does."""
    if seen is None:
        return Step.PROVISION if auto_provision else Step.REFUSE
    if not refusal(seen):
        return Step.ADMIT
    if seen.open_kind == Kind.SLEEP:
        return Step.CANCEL_SLEEP
    if seen.engine.status == Status.PROVISIONING:
        return Step.JOIN if auto_provision else Step.REFUSE
    if seen.engine.status == Status.SLEEPING and auto_wake:
        if seen.open_kind in (Kind.WAKE, Kind.START):
            return Step.JOIN
        return Step.REFUSE if seen.open_kind else Step.WAKE
    return Step.REFUSE


def _pursue(wish: Wish, seen: Seen | None) -> bool:
    """Do what the flags allow to make the engine callable. True when that calls for another look, or the engine moved."""
    step = plan(seen, auto_provision=wish.auto_provision, auto_wake=wish.auto_wake)
    try:
        if seen is None:
            return step == Step.PROVISION and _provision(wish)
        if step == Step.CANCEL_SLEEP:
            return _interrupt_sleep(wish, seen)
        if step == Step.JOIN:
            return _join(wish, seen)
        if step == Step.WAKE:
            return _begin(wish, lambda: lifecycle.wake(seen.engine, by=wish.by))
    except (EngineNotFound, EngineAlreadyExists, EngineAlreadyRunning, EngineNotRunning, OperationInProgress):
        return True  # it moved between the look and the lock
    return False


def _provision(wish: Wish) -> bool:
    return _begin(wish, lambda: lifecycle.provision(wish.product, wish.user_id, by=wish.by, auto=True))


def _interrupt_sleep(wish: Wish, seen: Seen) -> bool:
    """Cancel a sleep that no worker has claimed; after one that has, wait for its end when asked to."""
    with _gate.enter(wish.product.pk):
        if lifecycle.cancel_sleep(seen.engine, by=wish.by):
            return True
    if wish.auto_wake and seen.open_id is not None:
        operations.wait(seen.open_id, wish.left_s())
    return wish.auto_wake


def _join(wish: Wish, seen: Seen) -> bool:
    """Wait for what brings the engine up; another look when nothing does any more."""
    if (open_id := seen.open_id) is not None:
        _finish(wish.intend(lambda: Operation.objects.get(pk=open_id)), wish.left_s())
    return True


def _begin(wish: Wish, intent: Callable[[], Operation]) -> bool:
    """State an intent, which locks the product, and wait for its success."""
    with _gate.enter(wish.product.pk):
        operation = wish.intend(intent)
    _finish(operation, wish.left_s())
    return True


def _finish(operation: Operation, timeout_s: float) -> None:
    """Wait for the operation's success. One that another request superseded is no failure: the next look says what is now."""
    try:
        operations.finish(operation, timeout_s)
    except Unsuccessful as ended:
        if ended.operation.state != OperationState.SUPERSEDED:
            raise


def _mark_active(engine: Engine) -> None:
    """Note the admit, unless another one has been noted within ACTIVE_EVERY."""
    Engine.objects.filter(_STALE, pk=engine.pk).update(last_active_at=Now())
