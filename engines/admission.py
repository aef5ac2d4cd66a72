"""`admit`: whether a user's request may go to the user's engine now. The hot path: two reads, a counter, rarely a write."""

import time
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, TypedDict
from uuid import UUID

from django.conf import settings
from django.db.models import F, FilteredRelation, Q
from django.db.models.functions import Now

from audit import actors, trail
from audit.actions import Action
from audit.actors import Actor
from engines import lifecycle, names, operations
from engines.errors import (
    EngineAlreadyExists,
    EngineAlreadyRunning,
    EngineNotFound,
    EngineNotRunning,
    OperationInProgress,
    Unsuccessful,
)
from engines.models import OPEN, Engine, Kind, Operation, OperationState, Status
from policy import decisions, limits, overrides, refusals
from policy.errors import Denied
from policy.models import Product

if TYPE_CHECKING:
    from django_stubs_ext import WithAnnotations

    Seen = WithAnnotations[Engine, "_Looked"]

ACTIVE_EVERY = timedelta(seconds=30)
LOOKS = 4  # at an engine that moves while we decide
_STALE = Q(last_active_at=None) | Q(last_active_at__lt=Now() - ACTIVE_EVERY)

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


class _Looked(TypedDict):
    """What `look` adds to an engine."""

    open: object
    open_id: UUID | None
    open_kind: str | None
    stale: bool


@dataclass(frozen=True)
class Admission:
    """The answer: an engine that may be called, or None and why not."""

    engine: Engine | None
    reason: str = ""


@dataclass(frozen=True)
class Wish:
    """Who asks for which engine, what may be done for it, and until when (monotonic clock)."""

    product: Product
    user_id: str
    auto_provision: bool
    auto_wake: bool
    deadline: float

    @property
    def by(self) -> Actor:
        return actors.product(self.product.slug)

    def left_s(self) -> float:
        return max(0.0, self.deadline - time.monotonic())


def admit(product: Product, user_id: str, *, auto_provision: bool, auto_wake: bool, timeout_s: float | None = None) -> Admission:
    """Decide, and with the flags do what it takes: provision a missing engine, wake a sleeping one, and wait for it.

    `timeout_s` is how long it may wait, `longest_s()` when not given. Call `count` first. Raises InvalidUserId, what
    `lifecycle.provision` raises, Unfinished, Unsuccessful.
    """
    user_id = names.check_user_id(user_id)
    deadline = time.monotonic() + (longest_s() if timeout_s is None else timeout_s)
    wish = Wish(product, user_id, auto_provision, auto_wake, deadline)
    engine = look(product, user_id)
    for _ in range(LOOKS):
        if not refusal(engine) or not _pursue(wish, engine):
            break
        engine = look(product, user_id)
    reason = refusal(engine)
    if engine is None or reason:
        return Admission(None, reason)
    _mark_active(engine)
    return Admission(engine)


def count(product: Product, user_id: str) -> limits.Window | None:
    """Count an admit against the product's rate limit; returns what is left of that, None where nothing limits.

    Raises InvalidUserId, and with an `admit_denied` row ProductSuspended, RateLimited.
    """
    user_id = names.check_user_id(user_id)
    try:
        decisions.check([decisions.suspended(product.suspension_reason)])
        return limits.hit(str(product.pk), overrides.in_force(product))
    except Denied as refused:
        subject = trail.Subject(product_id=product.pk, product_slug=product.slug, user_id=user_id)
        refusals.record(Action.ADMIT_DENIED, subject, by=actors.product(product.slug), metadata=refused.metadata())
        raise


def longest_s() -> float:
    """How long an admit waits at most."""
    return float(settings.ENV.boot_timeout_s + settings.ENV.wait_s)


def look(product: Product, user_id: str) -> "Seen | None":
    """The user's living engine with its open operation (`open_id`, `open_kind`, null when none), in one query."""
    living = Engine.objects.filter(product=product, user_id=user_id, destroyed_at=None)
    joined = living.annotate(open=FilteredRelation("operations", condition=Q(operations__state__in=OPEN)))
    return joined.annotate(open_id=F("open__id"), open_kind=F("open__kind"), stale=_STALE).first()


def refusal(engine: "Seen | None") -> str:
    """Why the engine may not be called now; empty when it may."""
    if engine is None:
        return "engine_not_found"
    if engine.status != Status.RUNNING:
        return REASONS[Status(engine.status)]
    return "engine_busy" if engine.open_kind else ""


def plan(engine: "Seen | None", *, auto_provision: bool, auto_wake: bool) -> Step:
    """What an admit with these flags does."""
    if engine is None:
        return Step.PROVISION if auto_provision else Step.REFUSE
    if not refusal(engine):
        return Step.ADMIT
    if engine.open_kind == Kind.SLEEP:
        return Step.CANCEL_SLEEP
    if engine.status == Status.PROVISIONING:
        return Step.JOIN if auto_provision else Step.REFUSE
    if engine.status == Status.SLEEPING and auto_wake:
        if engine.open_kind in (Kind.WAKE, Kind.START):
            return Step.JOIN
        return Step.REFUSE if engine.open_kind else Step.WAKE
    return Step.REFUSE


def _pursue(wish: Wish, engine: "Seen | None") -> bool:
    """Do what the flags allow to make the engine callable. True when that calls for another look, or the engine moved."""
    step = plan(engine, auto_provision=wish.auto_provision, auto_wake=wish.auto_wake)
    try:
        if engine is None:
            return step == Step.PROVISION and _provision(wish)
        if step == Step.CANCEL_SLEEP:
            return _interrupt_sleep(wish, engine)
        if step == Step.JOIN:
            return _finish(wish, _open(engine))
        if step == Step.WAKE:
            return _finish(wish, lifecycle.wake(engine, by=wish.by))
    except (EngineNotFound, EngineAlreadyExists, EngineAlreadyRunning, EngineNotRunning, OperationInProgress):
        return True  # it moved between the look and the lock
    return False


def _provision(wish: Wish) -> bool:
    return _finish(wish, lifecycle.provision(wish.product, wish.user_id, by=wish.by, auto=True))


def _interrupt_sleep(wish: Wish, engine: "Seen") -> bool:
    """Cancel a sleep that no worker has claimed; after one that has, wait for its end when asked to."""
    if lifecycle.cancel_sleep(engine, by=wish.by):
        return True
    if wish.auto_wake and engine.open_id is not None:
        operations.wait(engine.open_id, wish.left_s())
    return wish.auto_wake


def _open(engine: "Seen") -> Operation | None:
    return Operation.objects.filter(pk=engine.open_id).first() if engine.open_id else None


def _finish(wish: Wish, operation: Operation | None) -> bool:
    """Wait for the operation's success. One that another request superseded is no failure: the next look says what is now."""
    if operation is None:
        return True
    try:
        operations.finish(operation, wish.left_s())
    except Unsuccessful as ended:
        if ended.operation.state != OperationState.SUPERSEDED:
            raise
    return True


def _mark_active(engine: "Seen") -> None:
    if engine.stale:
        Engine.objects.filter(_STALE, pk=engine.pk).update(last_active_at=Now())
