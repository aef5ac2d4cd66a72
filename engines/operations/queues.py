"""Whose turn it is: the queue of an operation, how many may be in flight, and which of those that wait comes next.

In flight is an operation that a worker holds a lease on. A product has at most `ORCH_PRODUCT_MAX_OPERATIONS` of them in each
queue that boot an engine, and as many that end one, so that its boots do not hold up its stops. All products together boot at
most `ORCH_MAX_BOOTS` engines at a time, of which `ORCH_WAKE_BOOTS` are for wakes alone. Where one process has the threads of all
queues (`ORCH_PROCESSES=small`), each queue has a share of operations in flight: as many as its own process would carry out.

What counts and then takes does so under one advisory lock, in one message to the server (`LOCK` and what follows): the server
lets go of the lock by itself, so a process that is frozen in the middle holds up nobody.
"""

import json
from collections.abc import Mapping
from typing import Any
from uuid import UUID

import redis
import structlog
from celery import current_app
from django.db import connection
from kombu.exceptions import OperationalError

from common import context
from common.settings import settings
from engines.models import IS_OPEN, Kind, Operation, Queue, Trigger
from engines.transitions import BOOTS

log = structlog.get_logger(__name__)

TASK = "engines.tasks.run_operation"  # by name: the task imports this module, and sending needs nothing of it
BATCH = 500  # operations sent at a time

LOCK = "SELECT pg_advisory_xact_lock(711042001);"
READY = f"{IS_OPEN} AND o.due_at <= clock_timestamp() AND (o.lease_until IS NULL OR o.lease_until < clock_timestamp())"


def _share(queue: str) -> str:
    """SQL: the share of a queue, or more operations than there ever are."""
    return f"coalesce((%(shares)s::jsonb ->> {queue})::int, 2147483647)"


ROOM = f"""(
    SELECT count(*) FILTER (WHERE fe.product_id = e.product_id AND f.queue = o.queue
                            AND (f.kind = ANY(%(boots)s)) = (o.kind = ANY(%(boots)s))) < %(product_max)s
       AND count(*) FILTER (WHERE f.queue = o.queue) < {_share("o.queue")}
       AND (o.kind <> ALL(%(boots)s)
            OR (count(*) FILTER (WHERE f.kind = ANY(%(boots)s)) < %(boots_max)s
                AND (o.queue = 'wake'
                     OR count(*) FILTER (WHERE f.kind = ANY(%(boots)s) AND f.queue <> 'wake') < %(boots_max)s - %(for_wakes)s)))
    FROM engines_operation f JOIN engines_engine fe ON fe.id = f.engine_id
    WHERE f.state = 'running' AND f.lease_until > clock_timestamp())"""
"""Whether operation `o` of engine `e` fits beside what is in flight."""

# In turn: a product's first waiting operation before any other's second, counting what it has in flight; then by age.
_WAITING = f"""
    WITH flying AS MATERIALIZED (
        SELECT e.product_id, o.queue, o.kind = ANY(%(boots)s) AS boots, count(*) AS n
        FROM engines_operation o JOIN engines_engine e ON e.id = o.engine_id
        WHERE o.state = 'running' AND o.lease_until > clock_timestamp() GROUP BY 1, 2, 3),
    waiting AS MATERIALIZED (
        SELECT o.id, o.queue, o.created_at, o.kind = ANY(%(boots)s) AS boots, coalesce(f.n, 0) + row_number() OVER (
            PARTITION BY e.product_id, o.queue, o.kind = ANY(%(boots)s) ORDER BY o.created_at, o.id) AS turn
        FROM engines_operation o JOIN engines_engine e ON e.id = o.engine_id
        LEFT JOIN flying f ON f.product_id = e.product_id AND f.queue = o.queue AND f.boots = (o.kind = ANY(%(boots)s))
        WHERE {READY})"""

# Of those, who has room: first as boots of all queues, of which wakes come first; then, among those that are left, in its queue.
# The second place counts nobody who has none of the first, or boots that wait would keep the ends behind them waiting, too.
_FITTING = f"""
    turns AS MATERIALIZED (
        SELECT *, row_number() OVER (PARTITION BY boots ORDER BY queue <> 'wake', turn, created_at, id) AS place,
            row_number() OVER (PARTITION BY boots, queue <> 'wake' ORDER BY turn, created_at, id) AS place_beside_wakes
        FROM waiting WHERE turn <= %(product_max)s),
    fitting AS MATERIALIZED (
        SELECT id, row_number() OVER (PARTITION BY queue ORDER BY turn, created_at, id)
            <= {_share("queue")} - (SELECT coalesce(sum(n), 0) FROM flying f WHERE f.queue = turns.queue) AS is_within_share
        FROM turns
        WHERE place <= %(batch)s AND (NOT boots OR (
            place <= %(boots_max)s - (SELECT coalesce(sum(n) FILTER (WHERE boots), 0) FROM flying)
            AND (queue = 'wake' OR place_beside_wakes <= %(boots_max)s - %(for_wakes)s
                 - (SELECT coalesce(sum(n) FILTER (WHERE boots AND queue <> 'wake'), 0) FROM flying)))))"""


def choose(kind: Kind, trigger: Trigger) -> Queue:
    """The queue for an operation: a user waits for a wake, a caller for what was requested, and nobody for the rest."""
    if kind == Kind.WAKE:
        return Queue.WAKE
    return Queue.LIFECYCLE if trigger == Trigger.REQUESTED and kind != Kind.SLEEP else Queue.BACKGROUND


def params() -> Mapping[str, Any]:
    """What ROOM compares with."""
    env = settings.ENV
    return {
        "boots": list(BOOTS),
        "product_max": env.product_max_operations,
        "boots_max": env.max_boots,
        "for_wakes": env.wake_boots,
        "shares": json.dumps(env.shares),
    }


def send(operation_id: UUID, queue: str) -> None:
    """Hand the operation's id to a queue, in the name of the request at hand. A broker that is away is a delay: `dispatch`."""
    try:
        current_app.send_task(TASK, (str(operation_id),), queue=queue, retry=False, ignore_result=True)
    except (OperationalError, redis.RedisError, OSError) as error:
        log.warning("operation_not_sent", operation_id=str(operation_id), error=type(error).__name__)


def dispatch() -> int:
    """Send what waits, has room, and was not sent within `ORCH_RESEND_AFTER_S`, those whose turn it is first; returns how many.

    Called whenever an operation ends, and by beat. It may send a little too much: the claim decides, and what it turns away waits
    for the next call.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            f"""{LOCK}
            {_WAITING}, {_FITTING}
            UPDATE engines_operation o
            SET sent_at = clock_timestamp(), due_at = CASE WHEN sent_at IS NULL THEN clock_timestamp() ELSE due_at END
            FROM fitting WHERE o.id = fitting.id AND {READY} AND is_within_share
              AND (sent_at IS NULL OR sent_at < clock_timestamp() - make_interval(secs => %(resend)s))
            RETURNING o.id, o.queue, o.request_id
            """,
            {**params(), "batch": BATCH, "resend": settings.ENV.resend_after_s},
        )
        cursor.nextset()  # past the lock's
        due = cursor.fetchall()
    for operation_id, queue, request_id in due:
        with context.of_request(request_id):
            send(operation_id, queue)
    return len(due)


def position(operation: Operation) -> int | None:
    """How many operations of its queue come before it, and one; None when it does not wait for its turn."""
    if not operation.is_open:
        return None
    with connection.cursor() as cursor:
        cursor.execute(
            f"""{_WAITING}, placed AS (
                SELECT id, row_number() OVER (PARTITION BY queue ORDER BY turn, created_at, id) AS place FROM waiting)
            SELECT place FROM placed WHERE id = %(id)s""",
            {**params(), "id": operation.pk},
        )
        row = cursor.fetchone()
    return int(row[0]) if row else None
