"""Operations that the fleet opens by itself: restarts after a failure or a host's restart, stops of engines that should not run.

Every function reads the engine again under its lock, and does nothing when another process was faster.
"""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from django.db import transaction
from django.db.models import Q
from django.db.models.functions import Now

from audit import trail
from audit.actions import Action
from audit.actors import Actor
from engines import operations
from engines.lifecycle import capacity, moves
from engines.lifecycle.backoff import next_restart_s
from engines.lifecycle.checks import lock_idle
from engines.lifecycle.outcomes import NOW, After
from engines.models import Engine, Kind, Operation, Status, Trigger
from engines.operations import params_of

STOP_FACTOR = 2  # an engine is stopped once its volume takes more than so many times its limit
_MAY_RUN = Q(status=Status.RUNNING) | Q(status=Status.FAILED, may_run=True)


@transaction.atomic
def mark_failed(engine_id: UUID, seq: int, *, by: Actor, why: Mapping[str, Any], may_run: bool) -> bool:
    """Mark a running engine `failed`, and schedule its restart, unless the engine has had all its restarts.

    `why` goes into the audit row. `may_run`: the engine's instance may still run. Returns False, and writes nothing, when the
    engine has moved since it had the given `seq`, or has an open operation.
    """
    engine = lock_idle(engine_id, status=Status.RUNNING, seq=seq)
    if engine is None:
        return False
    columns: dict[str, Any] = {"last_health_ok": False, "healthy_since": None, "answered_at": None, "may_run": may_run}
    metadata = dict(why)
    retry_in_s = next_restart_s(engine.restart_attempts)
    if retry_in_s is None:
        columns["gave_up_at"] = NOW
    else:
        columns["next_restart_at"] = After(retry_in_s)
        metadata["restart_in_s"] = round(retry_in_s, 1)
    moves.move(engine, Status.FAILED, Action.HEALTH_FAILED, by=by, metadata=metadata, extra=columns)
    if retry_in_s is None:
        engine.refresh_from_db(fields=["seq"])
        trail.record(Action.AUTO_RESTART_GAVE_UP, moves.subject(engine), by=by, metadata={"restarts": engine.restart_attempts})
    return True


@transaction.atomic
def auto_restart(engine_id: UUID, *, by: Actor) -> Operation | None:
    """Open the scheduled restart of a failed engine; None when the restart is not due any more.

    An engine whose volume takes too much disk space is stopped instead.
    """
    engine = lock_idle(engine_id, skip_locked=True, status=Status.FAILED, next_restart_at__lte=Now())
    if engine is None:
        return None
    if not capacity.decide_disk(engine).allowed:
        return _stop_oversized(engine, by=by)
    number = engine.restart_attempts + 1
    Engine.objects.filter(pk=engine.pk).update(next_restart_at=None, restart_attempts=number)
    params = {**params_of(Trigger.HEALTH), "restart": number}
    operation = operations.open(engine, Kind.RESTART, by=by, params=params)
    trail.record(Action.AUTO_RESTART_START, moves.subject(engine), by=by, metadata={"restart": number}, operation_id=operation.pk)
    return operation


@transaction.atomic
def resume(engine_id: UUID, seq: int, *, by: Actor, trigger: Trigger) -> Operation | None:
    """Restart an engine whose instance was seen not running; None when it has moved since, or has an open operation.

    `trigger`: HOST_RESTARTED, or RECONCILED where the host was not started again. An engine whose volume takes too much disk
    space is stopped instead.
    """
    engine = lock_idle(engine_id, status=Status.RUNNING, seq=seq)
    if engine is None:
        return None
    if not capacity.decide_disk(engine).allowed:
        return _stop_oversized(engine, by=by)
    return operations.open(engine, Kind.RESTART, by=by, params=params_of(trigger))


@transaction.atomic
def stop_again(engine_id: UUID, *, by: Actor) -> Operation | None:
    """Stop a running instance whose engine is stopped or sleeping; None when its state has changed, or an operation is open."""
    engine = lock_idle(engine_id, status__in=[Status.STOPPED, Status.SLEEPING])
    if engine is None:
        return None
    kind = Kind.STOP if engine.status == Status.STOPPED else Kind.SLEEP
    return operations.open(engine, kind, by=by, params=params_of(Trigger.RECONCILED))


@transaction.atomic
def stop_oversized(engine_id: UUID, *, by: Actor) -> Operation | None:
    """Stop an engine that may run and whose volume takes more than STOP_FACTOR times its limit; None if not, or if it is busy."""
    engine = lock_idle(engine_id, _MAY_RUN)
    if engine is None or engine.disk_used_mb is None:
        return None
    is_oversized = engine.disk_used_mb > STOP_FACTOR * capacity.disk_mb(engine.product)
    return _stop_oversized(engine, by=by) if is_oversized else None


def _stop_oversized(engine: Engine, *, by: Actor) -> Operation:
    """Open the stop of a locked engine whose volume takes too much disk space."""
    reason = f"disk: the volume takes {engine.disk_used_mb} MB of {capacity.disk_mb(engine.product)} MB"
    return operations.open(engine, Kind.STOP, by=by, params=params_of(Trigger.DISK, reason))
