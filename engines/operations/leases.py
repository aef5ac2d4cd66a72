"""A worker's right to an attempt at an operation: claimed, renewed, checked, given back.

All times are the database's clock. The attempt number is a fencing token: every write of a worker names its attempt, and changes
no row after a later claim of the operation, or once a destroy has superseded it.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import connection
from django.db.models import F
from django.db.models.functions import Now

from common.settings import settings
from engines import deployment
from engines.models import Operation
from engines.operations import queues


class LeaseLost(Exception):
    """Another worker has claimed the operation, or it was superseded: stop the attempt and write nothing."""


@dataclass(frozen=True)
class Lease:
    """A worker's right to carry out one attempt of an operation."""

    operation_id: UUID
    attempt: int
    started: datetime  # of the attempt, by the database's clock
    is_exhausted: bool = False  # too many earlier attempts died in the middle
    is_last: bool = False  # the time for tries is over: fails if the backend does not answer

    @property
    def params(self) -> dict[str, Any]:
        """The parameters of HELD."""
        return {"op_id": self.operation_id, "op_attempt": self.attempt}


HELD = "id = %(op_id)s AND attempt = %(op_attempt)s AND state = 'running'"
"""SQL: the condition of every write of a worker. No row fulfils it once the lease is lost."""


def claim(operation_id: UUID) -> Lease | None:
    """Take the lease of a due operation that nobody holds; None when it is ended, not due, leased, or without room.

    In a database of another deployment nothing is claimed: the pool may have been led to a copy while this process runs.

    An operation without room counts as not sent from now on: `queues.dispatch` sends it again once it has room.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            f"""{queues.LOCK}
            -- The advisory lock above makes the count in ROOM and the claim one action: no other claim comes in between.
            UPDATE engines_operation o
            -- The new attempt number is the fencing token: it voids the token of an earlier worker whose lease ran out.
            SET state = 'running', attempt = attempt + 1, attempt_started_at = clock_timestamp(),
                lease_until = clock_timestamp() + make_interval(secs => %(lease)s),
                steps = steps || jsonb_build_object('step', 'claimed', 'at', clock_timestamp(), 'attempt', attempt + 1)
            FROM engines_engine e WHERE o.id = %(id)s AND e.id = o.engine_id AND {queues.READY} AND {queues.ROOM}
                AND {deployment.IS_OURS}
            RETURNING attempt, attempt_started_at,
                -- is_exhausted: attempts that were not given back have died, except the new attempt.
                attempt - returned > %(most)s,
                -- is_last: the first step of all, which is the first claim, is too long ago.
                (o.steps -> 0 ->> 'at')::timestamptz < clock_timestamp() - make_interval(secs => %(give_up)s);
            -- Still ready means not claimed above, for want of room. A claimed operation has a lease and is not ready.
            UPDATE engines_operation o SET sent_at = NULL WHERE id = %(id)s AND {queues.READY}
            """,
            {
                **queues.params(),
                **deployment.params(),
                "id": operation_id,
                "lease": settings.ENV.lease_s,
                "most": settings.ENV.operation_max_attempts,
                "give_up": settings.ENV.operation_give_up_s,
            },
        )
        cursor.nextset()  # skips the result of the lock
        row = cursor.fetchone()
    return Lease(operation_id, *row) if row else None


def renew(leases: list[Lease]) -> None:
    """Extend every lease by the full length, except leases lost or given back meanwhile."""
    if not leases:
        return
    with connection.cursor() as cursor:
        cursor.execute(
            """
            UPDATE engines_operation o SET lease_until = clock_timestamp() + make_interval(secs => %s)
            -- One row per lease: the operation and the fencing token.
            FROM unnest(%s::uuid[], %s::int[]) AS held(id, attempt)
            -- NULL: the attempt has given its lease back, and must not get a new lease by a late renewal.
            WHERE o.id = held.id AND o.attempt = held.attempt AND o.state = 'running' AND o.lease_until IS NOT NULL
            """,
            [settings.ENV.lease_s, [lease.operation_id for lease in leases], [lease.attempt for lease in leases]],
        )


def step(lease: Lease, name: str) -> None:
    """Note that the attempt has reached the step `name`. Raises LeaseLost. To be called before every backend verb."""
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE engines_operation SET steps = steps || jsonb_build_object("
            f"'step', %(step)s::text, 'at', clock_timestamp(), 'attempt', attempt) WHERE {HELD}",
            {**lease.params, "step": name},
        )
        if cursor.rowcount == 0:
            raise LeaseLost(lease.operation_id)


def check(lease: Lease) -> None:
    """Raise LeaseLost when the lease is lost."""
    if not Operation.objects.held(lease.operation_id, lease.attempt).exists():
        raise LeaseLost(lease.operation_id)


def release(lease: Lease, *, delay_s: float) -> bool:
    """Give the lease back because the backend did not answer; the operation is due again after `delay_s` seconds.

    False when the lease was lost before.
    """
    due_at = Now() + timedelta(seconds=delay_s)
    hit = Operation.objects.held(lease.operation_id, lease.attempt).update(
        lease_until=None, sent_at=None, returned=F("returned") + 1, due_at=due_at
    )
    queues.dispatch()
    return hit == 1
