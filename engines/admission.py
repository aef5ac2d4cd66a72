"""`admit`: whether a user's request may go to the user's engine now. The hot path: two reads, a counter, rarely a write."""

from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from django.conf import settings
from django.db.models import F, FilteredRelation, Q
from django.db.models.functions import Now

from audit import actors, trail
from audit.actions import Action
from engines import lifecycle, operations
from engines.errors import EngineNotFound, EngineNotRunning
from engines.models import OPEN, Engine, Kind, Operation, Status
from policy import limits
from policy.errors import RateLimited
from policy.models import Product

ACTIVE_EVERY = timedelta(seconds=30)
_STALE = Q(last_active_at=None) | Q(last_active_at__lt=Now() - ACTIVE_EVERY)

REASONS = {
    Status.PROVISIONING: "engine_provisioning",
    Status.SLEEPING: "engine_sleeping",
    Status.STOPPED: "engine_stopped",
    Status.FAILED: "engine_unhealthy",
    Status.DESTROYING: "engine_destroying",
}


@dataclass(frozen=True)
class Admission:
    """The answer: an engine that may be called, or None and why not."""

    engine: Engine | None
    reason: str = ""


def admit(product: Product, user_id: str, *, auto_provision: bool, auto_wake: bool) -> Admission:
    """Decide, and with the flags do what it takes: provision a missing engine, wake a sleeping one, and wait for it.

    Raises InvalidUserId, RateLimited (with an `admit_denied` row), what `lifecycle.provision` raises, Unfinished, Unsuccessful.
    """
    user_id = lifecycle.check_user_id(user_id)
    _check_rate(product, user_id)
    engine = look(product, user_id)
    reason = refusal(engine)
    if engine is not None and reason == "engine_busy" and engine.open_kind == Kind.SLEEP:
        engine, reason = _interrupt_sleep(product, engine, wait=auto_wake)
    operation = _operation(product, user_id, engine, reason, auto_provision=auto_provision, auto_wake=auto_wake)
    if operation is not None:
        operations.finish(operation, settings.ENV.boot_timeout_s + settings.ENV.wait_s)
        engine = look(product, user_id)
        reason = refusal(engine)
    if engine is None or reason:
        return Admission(None, reason)
    _mark_active(engine)
    return Admission(engine)


def look(product: Product, user_id: str) -> Engine | None:
    """The user's living engine with its open operation (`open_id`, `open_kind`, null when none), in one query."""
    living = Engine.objects.filter(product=product, user_id=user_id, destroyed_at=None)
    joined = living.annotate(open=FilteredRelation("operations", condition=Q(operations__state__in=OPEN)))
    return joined.annotate(open_id=F("open__id"), open_kind=F("open__kind"), stale=_STALE).first()


def refusal(engine: Engine | None) -> str:
    """Why the engine may not be called now; empty when it may."""
    if engine is None:
        return "engine_not_found"
    if engine.status != Status.RUNNING:
        return REASONS[Status(engine.status)]
    return "engine_busy" if engine.open_kind else ""


def _check_rate(product: Product, user_id: str) -> None:
    try:
        limits.hit(str(product.pk), product.policy)
    except RateLimited as refused:
        subject = trail.Subject(product_id=product.pk, product_slug=product.slug, user_id=user_id)
        trail.record(Action.ADMIT_DENIED, subject, by=actors.product(product.slug), metadata=refused.metadata())
        raise


def _interrupt_sleep(product: Product, engine: Engine, *, wait: bool) -> tuple[Engine | None, str]:
    """Cancel a sleep that no worker has claimed; after one that has, wait for its end when asked to."""
    if not lifecycle.cancel_sleep(engine, by=actors.product(product.slug)) and wait:
        _wait_for(engine.open_id)
    seen = look(product, engine.user_id)
    return seen, refusal(seen)


def _wait_for(operation_id: UUID) -> None:
    operations.wait(operation_id, settings.ENV.stop_grace_s + settings.ENV.wait_s)


def _operation(
    product: Product, user_id: str, engine: Engine | None, reason: str, *, auto_provision: bool, auto_wake: bool
) -> Operation | None:
    """The operation that the flags ask for in this state, opened or joined; None when there is nothing to do or wait for."""
    by = actors.product(product.slug)
    if auto_provision and reason in ("engine_not_found", "engine_provisioning"):
        if engine is not None:
            return Operation.objects.filter(pk=engine.open_id).first()
        return lifecycle.provision(product, user_id, by=by, auto=True)
    if auto_wake and engine is not None and reason == "engine_sleeping":
        try:
            return lifecycle.wake(engine, by=by)
        except (EngineNotFound, EngineNotRunning):
            return None  # it moved between the look and the lock; the next look says how
    return None


def _mark_active(engine: Engine) -> None:
    if engine.stale:
        Engine.objects.filter(_STALE, pk=engine.pk).update(last_active_at=Now())
