"""Commits the end of an attempt: engine, operation and audit row together."""

from django.db import transaction

from audit import trail
from audit.actions import Action
from audit.actors import Actor
from engines import operations
from engines.lifecycle import moves
from engines.lifecycle.outcomes import NO_PENDING, Outcome
from engines.models import Engine, Operation, OperationState
from engines.operations import Lease


@transaction.atomic
def settle(lease: Lease, operation: Operation, outcome: Outcome) -> bool:
    """Commit an attempt's outcome. False, and nothing written, when the lease is lost."""
    engine = Engine.objects.living().locked().filter(pk=operation.engine_id).first()
    state = OperationState.FAILED if outcome.error[0] else OperationState.SUCCEEDED
    if engine is None or not operations.close(lease, state, error=outcome.error):  # a destroy has ended the operation
        return False
    moves.move(
        engine,
        outcome.status,
        outcome.action,
        by=Actor(operation.actor),
        metadata=outcome.metadata,
        extra=outcome.columns,
        operation_id=lease.operation_id,
        started=lease.started,
    )
    if outcome.also is not None:
        action, metadata = outcome.also
        engine.refresh_from_db(fields=["seq"])
        trail.record(action, moves.subject(engine), by=Actor(operation.actor), metadata=metadata, operation_id=operation.pk)
    return True


def record_superseded(engine: Engine, operation: Operation, *, by: Actor, superseded_by: str) -> None:
    """Write the audit row of a superseded operation, and remove the pending key of a superseded rotation."""
    Engine.objects.filter(pk=engine.pk).update(**NO_PENDING)
    metadata = {"kind": operation.kind, "superseded_by": superseded_by}
    trail.record(Action.OPERATION_SUPERSEDED, moves.subject(engine), by=by, metadata=metadata, operation_id=operation.pk)
