"""What the fleet asks for by itself: restarts of what failed or lost its host, and stops of what should not run.

Each looks at the engine again under its lock, and opens nothing when somebody else has been faster.
"""

from uuid import UUID

from django.db import transaction
from django.db.models.functions import Now

from audit import trail
from audit.actions import Action
from audit.actors import Actor
from engines import moves, operations
from engines.lifecycle import params_of
from engines.models import Engine, Kind, Operation, Status


@transaction.atomic
def auto_restart(engine_id: UUID, *, by: Actor) -> Operation | None:
    """Start the restart that was scheduled for a failed engine; None when it is not due any more."""
    due = Engine.objects.filter(pk=engine_id, status=Status.FAILED, next_restart_at__lte=Now())
    engine = due.select_for_update(no_key=True, skip_locked=True).first()
    if engine is None or operations.find_open(engine) is not None:
        return None
    number = engine.restart_attempts + 1
    Engine.objects.filter(pk=engine.pk).update(next_restart_at=None, restart_attempts=number)
    operation = operations.open(engine, Kind.RESTART, by=by, params={"cause": "health", "restart": number})
    trail.record(Action.AUTO_RESTART_START, moves.subject(engine), by=by, metadata={"restart": number}, operation_id=operation.pk)
    return operation


@transaction.atomic
def resume(engine_id: UUID, seq: int, *, by: Actor) -> Operation | None:
    """Restart an engine whose instance did not run when it was looked at; None when it has moved since, or has an operation."""
    engine = Engine.objects.select_for_update(no_key=True).filter(pk=engine_id, status=Status.RUNNING, seq=seq).first()
    if engine is None or operations.find_open(engine) is not None:
        return None
    return operations.open(engine, Kind.RESTART, by=by, params=params_of("host_restarted"))


@transaction.atomic
def stop_again(engine_id: UUID, *, by: Actor) -> Operation | None:
    """Stop the instance of an engine that is stopped or sleeping by the registry, yet runs; None when that is not so any more."""
    engine = (
        Engine.objects.select_for_update(no_key=True).filter(pk=engine_id, status__in=[Status.STOPPED, Status.SLEEPING]).first()
    )
    if engine is None or operations.find_open(engine) is not None:
        return None
    kind = Kind.STOP if engine.status == Status.STOPPED else Kind.SLEEP
    return operations.open(engine, kind, by=by, params=params_of("reconciled", ""))
