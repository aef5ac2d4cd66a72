"""The end of an operation: its worker closes it, a later request supersedes it, or it is dropped with its engine."""

from collections.abc import Collection
from uuid import UUID

from django.db import connection, transaction
from django.db.models.functions import Now

from engines.models import OPEN, Operation, OperationState
from engines.operations import queues
from engines.operations.leases import HELD, Lease
from engines.operations.waiting import announce


def supersede(operation: Operation, *, only_unclaimed: bool = False) -> bool:
    """End an open operation early, which voids its fencing token. False when the operation had already ended by itself."""
    hit = _supersede(operation, (OperationState.PENDING,) if only_unclaimed else OPEN)
    if hit:
        transaction.on_commit(lambda: _over(operation.pk), robust=True)
    return hit


def drop(operation: Operation) -> bool:
    """The same, in a database for which no process works: nobody is told, and no further operation is sent."""
    return _supersede(operation, OPEN)


def _supersede(operation: Operation, states: Collection[OperationState]) -> bool:
    return bool(
        Operation.objects.filter(pk=operation.pk, state__in=states).update(
            state=OperationState.SUPERSEDED, finished_at=Now(), lease_until=None
        )
    )


def close(lease: Lease, state: OperationState, *, error: tuple[str, str] = ("", "")) -> bool:
    """End the operation as `state`, within the caller's transaction; False when the lease is lost."""
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE engines_operation SET state = %(state)s, finished_at = clock_timestamp(), lease_until = NULL,"
            " error_code = %(code)s, error_message = %(message)s,"
            " steps = steps || jsonb_build_object('step', %(state)s::text, 'at', clock_timestamp(), 'attempt', attempt)"
            f" WHERE {HELD}",
            {**lease.params, "state": state, "code": error[0], "message": error[1]},
        )
        held = bool(cursor.rowcount == 1)
    if held:
        transaction.on_commit(lambda: _over(lease.operation_id), robust=True)
    return held


def _over(operation_id: UUID) -> None:
    """Wake the requests waiting for the operation, and send further operations into the free room."""
    announce(operation_id)
    queues.dispatch()
