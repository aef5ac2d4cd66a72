"""A worker's right to an attempt at an operation: claimed, renewed, checked, given back.

Every time here is the database's clock. The attempt number is a fencing token: each write of a worker names its attempt, and hits
nothing once another worker has claimed the operation or a destroy has superseded it."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import connection
from django.db.models import F
from django.db.models.functions import Now

from common.settings import settings
from engines.models import Operation
from engines.operations import queues


class LeaseLost(Exception):
    """The operation is another worker's now, or superseded: drop everything, write nothing."""


@dataclass(frozen=True)
class Lease:
    """A worker's right to carry out one attempt of an operation."""

    operation_id: UUID
    attempt: int
    started: datetime  # of this attempt, database clock
    is_exhausted: bool = False  # too many attempts before this one died in the middle
    is_last: bool = False  # a backend that does not answer has been waited for long enough

    @property
    def params(self) -> dict[str, Any]:
        """For the WHERE of every write: `id = %(op_id)s AND attempt = %(op_attempt)s AND state = 'running'`."""
        return {"op_id": self.operation_id, "op_attempt": self.attempt}


HELD = "id = %(op_id)s AND attempt = %(op_attempt)s AND state = 'running'"


def claim(operation_id: UUID) -> Lease | None:
    """Take the lease of a due operation that nobody holds; None when there is nothing to claim, or no room for it yet.

    One that finds no room counts as not sent: `queues.dispatch` sends it when its turn has come.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            f"""{queues.LOCK}
            UPDATE engines_operation o
            SET state = 'running', attempt = attempt + 1, attempt_started_at = clock_timestamp(),
                lease_until = clock_timestamp() + make_interval(secs => %(lease)s),
                steps = steps || jsonb_build_object('step', 'claimed', 'at', clock_timestamp(), 'attempt', attempt + 1)
            FROM engines_engine e WHERE o.id = %(id)s AND e.id = o.engine_id AND {queues.READY} AND {queues.ROOM}
            RETURNING attempt, attempt_started_at, attempt - returned > %(most)s,
                (o.steps -> 0 ->> 'at')::timestamptz < clock_timestamp() - make_interval(secs => %(give_up)s);
            UPDATE engines_operation o SET sent_at = NULL WHERE id = %(id)s AND {queues.READY}
            """,
            {
                **queues.params(),
                "id": operation_id,
                "lease": settings.ENV.lease_s,
                "most": settings.ENV.operation_max_attempts,
                "give_up": settings.ENV.operation_give_up_s,
            },
        )
        cursor.nextset()  # past the lock's
        row = cursor.fetchone()
    return Lease(operation_id, *row) if row else None


def renew(leases: list[Lease]) -> None:
    """Extend the leases by the full length, those of them that still hold and were not given back meanwhile."""
    if not leases:
        return
    with connection.cursor() as cursor:
        cursor.execute(
            """
            UPDATE engines_operation o SET lease_until = clock_timestamp() + make_interval(secs => %s)
            FROM unnest(%s::uuid[], %s::int[]) AS held(id, attempt)
            WHERE o.id = held.id AND o.attempt = held.attempt AND o.state = 'running' AND o.lease_until IS NOT NULL
            """,
            [settings.ENV.lease_s, [lease.operation_id for lease in leases], [lease.attempt for lease in leases]],
        )


def step(lease: Lease, name: str) -> None:
    """Note that the attempt has come to `name`. Raises LeaseLost when it is not ours any more: call before every backend verb."""
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE engines_operation SET steps = steps || jsonb_build_object("
            f"'step', %(step)s::text, 'at', clock_timestamp(), 'attempt', attempt) WHERE {HELD}",
            {**lease.params, "step": name},
        )
        if cursor.rowcount == 0:
            raise LeaseLost(lease.operation_id)


def check(lease: Lease) -> None:
    """Raise LeaseLost when the attempt is not ours any more."""
    if not Operation.objects.held(lease).exists():
        raise LeaseLost(lease.operation_id)


def release(lease: Lease, *, delay_s: float) -> bool:
    """Give the lease back because the backend did not answer; the operation is due again after `delay_s`.

    False when the attempt is not ours any more.
    """
    due_at = Now() + timedelta(seconds=delay_s)
    hit = Operation.objects.held(lease).update(lease_until=None, sent_at=None, returned=F("returned") + 1, due_at=due_at)
    queues.dispatch()
    return hit == 1
