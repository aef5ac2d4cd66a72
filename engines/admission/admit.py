"""`admit`: whether a user's request may go to the user's engine now. The hot path: two reads, a counter, rarely a write."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from django.db.models import Q
from django.db.models.functions import Now

from audit import actors, trail
from audit.actions import Action
from audit.actors import Actor
from common.settings import settings
from engines import identifiers, lifecycle, operations
from engines.admission.gate import Gate
from engines.admission.sight import ACTIVE_EVERY, Course, Seen, look, plan, reason_against
from engines.errors import (
    EngineAlreadyExists,
    EngineAlreadyRunning,
    EngineNotFound,
    EngineNotRunning,
    OperationInProgress,
    Unsuccessful,
)
from engines.models import Engine, Operation, OperationState
from policy import decisions, overrides, rate_limit, refusals
from policy.errors import Denied
from policy.models import Product
from policy.sliding_window import Window

TRIES = 4  # looks at an engine that moves while we decide
_gate = Gate(settings.ENV.web_threads // 4 or 1)  # of the hot threads: half may wait for operations, so a quarter is always free
_STALE = Q(last_active_at=None) | Q(last_active_at__lt=Now() - ACTIVE_EVERY)


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
    on_counted: Callable[[Window], None] = lambda window: None,
) -> Admission:
    """Count the admit, decide, and with the flags do what it takes: provision a missing engine, wake a sleeping one, and wait.

    `timeout_s` is how long the admit may wait, `longest_s()` when not given. `on_counted` is called with what is left of the
    product's rate limit, where it has one. Raises InvalidUserId, what `lifecycle.provision` raises, Unfinished, Unsuccessful,
    Crowded when another admit has waited long for the same locks, and with an `admit_denied` row ProductSuspended, RateLimited.
    """
    user_id = identifiers.check_user_id(user_id)
    if (window := _count(product, user_id)) is not None:
        on_counted(window)
    deadline = time.monotonic() + (longest_s() if timeout_s is None else timeout_s)
    wish = Wish(product, user_id, auto_provision, auto_wake, deadline, intend)
    seen = look(product, user_id)
    for _ in range(TRIES):
        if not reason_against(seen) or not _pursue(wish, seen):
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
    reason = reason_against(seen)
    if seen is None or reason:
        return Admission(None, reason)
    if seen.stale:
        _mark_active(seen.engine)
    return Admission(seen.engine)


def _count(product: Product, user_id: str) -> Window | None:
    """Count an admit against the product's rate limit; returns what is left of the limit, None where nothing limits."""
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


def _pursue(wish: Wish, seen: Seen | None) -> bool:
    """Do what the flags allow to make the engine callable. True when that calls for another look, or the engine moved."""
    step = plan(seen, auto_provision=wish.auto_provision, auto_wake=wish.auto_wake)
    try:
        if seen is None:
            return step == Course.PROVISION and _provision(wish)
        if step == Course.CANCEL_SLEEP:
            return _interrupt_sleep(wish, seen)
        if step == Course.JOIN:
            return _join(wish, seen)
        if step == Course.WAKE:
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
