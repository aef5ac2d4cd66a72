"""Decides whether a user's request may go to the user's engine now.

An admit is the hot path: two reads, a counter, rarely a write.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import UUID

from django.db.models import Q
from django.db.models.functions import Now

from audit import actors, trail
from audit.actions import Action
from audit.actors import Actor
from common.settings import settings
from common.shares import ReservedPlaces
from engines import identifiers, lifecycle, operations
from engines.admission.gate import PATIENCE_S, SHORT_PATIENCE_S, Gate
from engines.admission.sight import ACTIVE_EVERY, Course, Seen, choose, reason_against, see
from engines.errors import (
    Crowded,
    EngineAlreadyExists,
    EngineAlreadyRunning,
    EngineNotFound,
    EngineNotRunning,
    NoPlaceToWait,
    OperationInProgress,
    Unsuccessful,
)
from engines.models import Engine, Operation, OperationState
from policy import decisions, overrides, rate_limit, refusals
from policy.errors import Denied
from policy.models import Product
from policy.sliding_window import Window

TRIES = 4  # reads of an engine that moves while the admit decides
# A quarter of the hot threads may be inside the gate. A thread that waits for an operation does not count among the hot threads.
_gate = Gate(settings.ENV.web_threads // 4 or 1)
# The hot threads at the gate, by product. Beyond the share of their product, admits wait only briefly at the gate. An admit of a
# running engine never waits, and is not counted.
_threads = ReservedPlaces(settings.ENV.web_threads, settings.ENV.reserved_threads)
_STALE = Q(last_active_at=None) | Q(last_active_at__lt=Now() - ACTIVE_EVERY)


@dataclass(frozen=True)
class Admission:
    """The answer to an admit: an engine that may be called, or None and the reason."""

    engine: Engine | None
    reason: str = ""


Intend = Callable[[Callable[[], Operation]], Operation]
"""Calls a function that opens (or joins) an operation, and returns the operation.

If an earlier try of the request has opened an operation, returns the earlier operation instead.
"""


@dataclass(frozen=True)
class Wish:
    """The request behind an admit: product and user, the permitted effects, and the deadline (monotonic clock)."""

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
    """Count the admit and decide; with the flags, provision a missing engine or wake a sleeping engine, and wait for it.

    `timeout_s` is the longest wait in seconds, by default `longest_s()`. `on_counted` receives the state of the product's rate
    limit, if the product has a limit. Raises InvalidUserId, the refusals of `lifecycle.provision`, Unfinished, NoPlaceToWait,
    Unsuccessful; Crowded when other admits have waited long for the same locks, or too many requests wait; and with an
    `admit_denied` row ProductSuspended, RateLimited.
    """
    user_id = identifiers.check_user_id(user_id)
    if (window := _count(product, user_id)) is not None:
        on_counted(window)
    deadline = time.monotonic() + (longest_s() if timeout_s is None else timeout_s)
    wish = Wish(product, user_id, auto_provision, auto_wake, deadline, intend)
    seen = see(product, user_id)
    for _ in range(TRIES):
        if not reason_against(seen) or not _pursue(wish, seen):
            break
        seen = see(product, user_id)
    return _conclude(seen)


def readmit(product: Product, user_id: str, operation: Operation, timeout_s: float) -> Admission:
    """Answer a repeated admit whose first try led to `operation`, by the present state of the operation's engine.

    Nothing is counted, and no operation is opened. Raises ProductSuspended with an `admit_denied` row; EngineNotFound when the
    engine is destroyed, even if the user has a new engine; Unfinished, NoPlaceToWait, Unsuccessful.
    """
    with _recorded(product, user_id):
        decisions.check([decisions.suspended(product.suspension_reason)])
    _finish(operation, timeout_s)
    seen = see(product, user_id)
    if seen is None or seen.engine.pk != operation.engine_id:
        raise EngineNotFound("The engine has been destroyed since the first request.")
    return _conclude(seen)


def _conclude(seen: Seen | None) -> Admission:
    reason = reason_against(seen)
    if seen is None or reason:
        return Admission(None, reason)
    if seen.stale:
        _mark_active(seen.engine)
    return Admission(seen.engine)


def _count(product: Product, user_id: str) -> Window | None:
    """Count an admit against the product's rate limit; returns the state of the limit, None without a limit."""
    with _recorded(product, user_id):
        decisions.check([decisions.suspended(product.suspension_reason)])
        return rate_limit.hit(str(product.pk), overrides.in_force(product))


@contextmanager
def _recorded(product: Product, user_id: str) -> Iterator[None]:
    """Write the `admit_denied` row of a refusal raised inside the block."""
    try:
        yield
    except Denied as refused:
        subject = trail.Subject(product_id=product.pk, product_slug=product.slug, user_id=user_id)
        refusals.record(Action.ADMIT_DENIED, subject, by=actors.product(product.slug), metadata=refused.metadata())
        raise


def longest_s() -> float:
    """The longest wait of an admit, in seconds."""
    return float(settings.ENV.boot_timeout_s + settings.ENV.wait_s)


def _pursue(wish: Wish, seen: Seen | None) -> bool:
    """Do what the flags allow to make the engine callable. True when the engine must be read again."""
    course = choose(seen, auto_provision=wish.auto_provision, auto_wake=wish.auto_wake)
    if course == Course.REFUSE:
        return False
    try:
        return _follow(course, wish, seen)
    except (EngineNotFound, EngineAlreadyExists, EngineAlreadyRunning, EngineNotRunning, OperationInProgress):
        return True  # the engine moved after it was read and before it was locked


def _follow(course: Course, wish: Wish, seen: Seen | None) -> bool:
    if seen is None:
        return _begin(wish, lambda: lifecycle.provision(wish.product, wish.user_id, by=wish.by, auto=True))
    if course == Course.CANCEL_SLEEP:
        return _interrupt_sleep(wish, seen)
    if course == Course.JOIN:
        return _join(wish, seen)
    return _begin(wish, lambda: lifecycle.wake(seen.engine, by=wish.by))


def _interrupt_sleep(wish: Wish, seen: Seen) -> bool:
    """Cancel a sleep that no worker has claimed. With `auto_wake`, wait for the end of a claimed sleep."""
    with _gated(wish.product):
        if lifecycle.cancel_sleep(seen.engine, by=wish.by):
            return True
    if wish.auto_wake and seen.open_id is not None:
        _outwait(wish, seen.open_id)
    return wish.auto_wake


def _outwait(wish: Wish, sleep_id: UUID) -> None:
    """Wait for the end of a sleep. Raises Crowded when too many requests wait: the sleep is not what the caller asked for."""
    try:
        operations.wait(sleep_id, wish.left_s())
    except NoPlaceToWait as full:
        raise Crowded("Too many requests are waiting already; nothing was begun. Try again in a few seconds.") from full


def _join(wish: Wish, seen: Seen) -> bool:
    """Wait for the operation that brings the engine up, if it is still open. Always True: the engine must be read again."""
    if (open_id := seen.open_id) is not None:
        operation = wish.intend(lambda: Operation.objects.get(pk=open_id))
        _finish(operation, wish.left_s())
    return True


def _begin(wish: Wish, intent: Callable[[], Operation]) -> bool:
    """State the intent, which locks the product, and wait for the operation's success."""
    with _gated(wish.product):
        operation = wish.intend(intent)
    _finish(operation, wish.left_s())
    return True


@contextmanager
def _gated(product: Product) -> Iterator[None]:
    """Be inside the gate during the block, and meanwhile count among the hot threads of the product. Raises Crowded."""
    with (
        _threads.hold(product.pk) as is_within_share,
        _gate.enter(product.pk, PATIENCE_S if is_within_share else SHORT_PATIENCE_S),
    ):
        yield


def _finish(operation: Operation, timeout_s: float) -> None:
    """Wait for the operation's success. Being superseded is no failure: the next read shows the engine's new state.

    Raises Unfinished, Unsuccessful, NoPlaceToWait.
    """
    try:
        operations.finish(operation, timeout_s)
    except Unsuccessful as ended:
        if ended.operation.state != OperationState.SUPERSEDED:
            raise


def _mark_active(engine: Engine) -> None:
    """Note the time of the admit, unless an admit was noted within ACTIVE_EVERY."""
    Engine.objects.filter(_STALE, pk=engine.pk).update(last_active_at=Now())
