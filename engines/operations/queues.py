"""The places in the queues: the queue of an operation, the limits of operations in flight, and the next operation to send.

An operation is in flight while a worker holds a lease on it. Three limits hold:

- A product has at most `ORCH_PRODUCT_MAX_OPERATIONS` operations in flight in each of its lanes: wakes, other boots, and per queue
  operations that boot nothing. The boots of a product thus do not hold up its wakes and its stops.
- All products together boot at most `ORCH_MAX_BOOTS` engines at a time. `ORCH_WAKE_BOOTS` of the boots are reserved for wakes.
  A single product leaves an eighth of all boots to other products.
- With `ORCH_PROCESSES=small`, a single process has the threads of all queues. Every queue then has a share of the operations in
  flight: as many as its own process would carry out.

Counting the operations in flight and taking a place happen under an advisory lock, in a single message to the server: `LOCK` and
the statement after it. The server releases the lock by itself, and thus a process that freezes in the middle blocks nobody.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID, uuid4

import redis
import structlog
from celery import current_app
from django.db import connection
from kombu.exceptions import OperationalError

from common import context
from common.context import Call
from common.outages import VALKEY
from common.settings import settings
from engines.models import IS_OPEN, Kind, Operation, Queue, Trigger
from engines.transitions import BOOTS

log = structlog.get_logger(__name__)

TASK = "engines.tasks.run_operation"  # by name: the module of the task imports `queues`, and sending needs only the name
BATCH = 500  # boots, and as many other operations, that a call of `dispatch` sends at most

LOCK = "SELECT pg_advisory_xact_lock(711042001);"
"""SQL: the lock under which operations in flight are counted and places are taken. Held until the transaction ends."""

READY = f"{IS_OPEN} AND o.due_at <= clock_timestamp() AND (o.lease_until IS NULL OR o.lease_until < clock_timestamp())"
"""SQL: operation `o` is open and due, and no worker holds a lease on it."""


def _lane(operation: str) -> str:
    """SQL: the lane of an operation. All boots but wakes share a lane, whatever their queue: they compete for the same places."""
    of_boot = f"CASE {operation}.queue WHEN 'wake' THEN 'wakes' ELSE 'boots' END"
    return f"(CASE WHEN {operation}.kind = ANY(%(boots)s) THEN {of_boot} ELSE {operation}.queue END)"


def _share(queue: str) -> str:
    """SQL: the share of the queue, or 2147483647 when the queue has no share and thus no limit."""
    return f"coalesce((%(shares)s::jsonb ->> {queue})::int, 2147483647)"


ROOM = f"""(
    -- The product: its operations in flight in the lane of o.
    SELECT count(*) FILTER (WHERE fe.product_id = e.product_id AND {_lane("f")} = {_lane("o")}) < %(product_max)s
    -- The queue: all its operations in flight, against its share.
       AND count(*) FILTER (WHERE f.queue = o.queue) < {_share("o.queue")}
    -- The boots: an operation that boots nothing needs no place among them.
       AND (o.kind <> ALL(%(boots)s)
    -- All boots in flight, of all products and queues.
            OR (count(*) FILTER (WHERE f.kind = ANY(%(boots)s)) < %(boots_max)s
    -- The product, again: its boots in all lanes.
                AND count(*) FILTER (WHERE fe.product_id = e.product_id AND f.kind = ANY(%(boots)s)) < %(product_boots)s
    -- A wake may take every place. Any other boot leaves the places reserved for wakes.
                AND (o.queue = 'wake'
                     OR count(*) FILTER (WHERE f.kind = ANY(%(boots)s) AND f.queue <> 'wake') < %(boots_max)s - %(for_wakes)s)))
    -- f: the operations in flight. An operation whose lease ran out is not in flight any more.
    FROM engines_operation f JOIN engines_engine fe ON fe.id = f.engine_id
    WHERE f.state = 'running' AND f.lease_until > clock_timestamp())"""
"""SQL: whether operation `o` of engine `e` fits beside the operations in flight."""

# The order of waiting operations: every product's first operation comes before any product's second operation, where operations
# in flight take the first places of their product. Within equal places, the older operation comes first.
_WAITING = f"""
    WITH in_flight AS MATERIALIZED (
        -- n: operations in flight, per product, queue and lane. A lane has either boots or operations that boot nothing.
        SELECT e.product_id, o.queue, {_lane("o")} AS lane, o.kind = ANY(%(boots)s) AS boots, count(*) AS n
        FROM engines_operation o JOIN engines_engine e ON e.id = o.engine_id
        WHERE o.state = 'running' AND o.lease_until > clock_timestamp() GROUP BY 1, 2, 3, 4),
    in_lane AS (SELECT product_id, lane, sum(n) AS n FROM in_flight GROUP BY 1, 2),
    waiting AS MATERIALIZED (
        -- place_of_product: how many operations of its product come before the operation, plus 1, within its lane. Operations in
        -- flight come first, then waiting operations by age. The id decides between equal ages.
        SELECT o.id, o.queue, o.created_at, e.product_id, o.kind = ANY(%(boots)s) AS boots, coalesce(f.n, 0) + row_number() OVER (
            PARTITION BY e.product_id, {_lane("o")} ORDER BY o.created_at, o.id) AS place_of_product
        FROM engines_operation o JOIN engines_engine e ON e.id = o.engine_id
        -- No row of in_lane: the product has nothing in flight, and n counts as 0.
        LEFT JOIN in_lane f ON f.product_id = e.product_id AND f.lane = {_lane("o")}
        WHERE {READY})"""

# The waiting operations that have room. A boot needs a place among the boots of all queues. Every operation needs a place in its
# queue, where boots without room are not counted: otherwise they would hold up the stops behind them.
_WITH_ROOM = f"""
    within_lane AS MATERIALIZED (
        -- boot_of_product: of a boot, how many boots of its product come before it, plus 1, in all lanes. Wakes come first.
        SELECT *, coalesce((SELECT sum(n) FROM in_flight f WHERE f.product_id = waiting.product_id AND f.boots), 0)
            + row_number() OVER (PARTITION BY product_id, boots ORDER BY queue <> 'wake', created_at, id) AS boot_of_product
        -- An operation beyond the limits of its product takes no place from other products.
        FROM waiting WHERE place_of_product <= %(product_max)s),
    placed AS MATERIALIZED (
        -- place: among the boots (or the operations that boot nothing) of all queues. Sort key: wakes first (false sorts before
        -- true), then products by rotation, then the oldest; the id decides between equal ages.
        SELECT *, row_number() OVER (PARTITION BY boots ORDER BY queue <> 'wake', place_of_product, created_at, id) AS place,
            -- place_without_wakes: of a boot that is no wake, among all such boots.
            row_number() OVER (PARTITION BY boots, queue <> 'wake' ORDER BY place_of_product, created_at, id)
                AS place_without_wakes
        FROM within_lane WHERE NOT boots OR boot_of_product <= %(product_boots)s),
    with_room AS MATERIALIZED (
        -- is_within_share: the place in the queue, among operations with room only, against the rest of the share of the queue.
        SELECT id, row_number() OVER (PARTITION BY queue ORDER BY place_of_product, created_at, id)
            <= {_share("queue")} - (SELECT coalesce(sum(n), 0) FROM in_flight f WHERE f.queue = placed.queue) AS is_within_share
        FROM placed
        WHERE place <= %(batch)s AND (NOT boots OR (
            -- A boot: its place must be free beside the boots in flight,
            place <= %(boots_max)s - (SELECT coalesce(sum(n) FILTER (WHERE boots), 0) FROM in_flight)
            -- and unless it is a wake, the places reserved for wakes must stay free.
            AND (queue = 'wake' OR place_without_wakes <= %(boots_max)s - %(for_wakes)s
                 - (SELECT coalesce(sum(n) FILTER (WHERE boots AND queue <> 'wake'), 0) FROM in_flight)))))"""


def choose(kind: Kind, trigger: Trigger) -> Queue:
    """The queue of an operation.

    WAKE for a wake, because a user waits; LIFECYCLE for a requested operation, because a caller waits; BACKGROUND for the rest,
    sleeps included, because nobody waits.
    """
    if kind == Kind.WAKE:
        return Queue.WAKE
    return Queue.LIFECYCLE if trigger == Trigger.REQUESTED and kind != Kind.SLEEP else Queue.BACKGROUND


def params() -> Mapping[str, Any]:
    """The parameters of ROOM, `_WAITING` and `_WITH_ROOM`."""
    env = settings.ENV
    return {
        "boots": list(BOOTS),
        "product_max": env.product_max_operations,
        "boots_max": env.max_boots,
        "product_boots": env.product_boots,
        "for_wakes": env.wake_boots,
        "shares": json.dumps(env.shares),
    }


def send(operation_id: UUID, queue: str) -> bool:
    """Send the operation's id to a queue, with the ids of the call at hand; returns whether the broker has taken it.

    If the broker is away, the operation is only delayed: beat sends it again by `dispatch`.
    """
    try:
        current_app.send_task(TASK, (str(operation_id),), queue=queue, retry=False, ignore_result=True)
    except (OperationalError, redis.RedisError, OSError) as error:
        VALKEY.failed(error)
        log.info("operation_not_sent", operation_id=str(operation_id), error=type(error).__name__)
        return False
    VALKEY.answered()
    return True


def dispatch() -> int:
    """Send waiting operations with room that were not sent within `ORCH_RESEND_AFTER_S` seconds; returns how many.

    Called whenever an operation ends, and by beat. The first places in the queues are sent first, up to BATCH. `dispatch` may
    send a little too much: the claim decides, and an operation refused by the claim waits for the next call. Stops at the first
    operation that the broker does not take.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            f"""{LOCK}
            {_WAITING}, {_WITH_ROOM}
            UPDATE engines_operation o
            -- An operation sent for the first time is due from now on: the time without room is no delay of the workers.
            SET sent_at = clock_timestamp(), due_at = CASE WHEN sent_at IS NULL THEN clock_timestamp() ELSE due_at END
            -- Ready is checked again on the locked row: a destroy may have superseded the operation since it was read.
            FROM with_room WHERE o.id = with_room.id AND {READY} AND is_within_share
              -- An operation sent a short time ago is still on its way. A message that is lost is sent again later.
              AND (sent_at IS NULL OR sent_at < clock_timestamp() - make_interval(secs => %(resend)s))
            RETURNING o.id, o.queue, o.call_id, o.request_id
            """,
            {**params(), "batch": BATCH, "resend": settings.ENV.resend_after_s},
        )
        cursor.nextset()  # skips the result of the lock
        due = cursor.fetchall()
    for number, (operation_id, queue, call_id, request_id) in enumerate(due):
        with context.of_call(Call(call_id or uuid4(), request_id)):
            if not send(operation_id, queue):
                _give_back([row[0] for row in due[number:]])
                return number
    return len(due)


def _give_back(unsent: Sequence[UUID]) -> None:
    """Note that the operations were not sent: the next call of `dispatch` sends them.

    While the broker is away each try takes seconds, so after one the others are not tried.
    """
    Operation.objects.open().filter(pk__in=unsent).update(sent_at=None)


def position(operation: Operation, *, of_product: bool = False) -> int | None:
    """The operation's place in its queue, from 1; None when the operation does not wait for a place.

    `of_product`: among the operations of its product, which is all that a product may learn. The whole queue would tell how much
    work other products wait for.
    """
    if not operation.is_open:
        return None
    with connection.cursor() as cursor:
        cursor.execute(
            f"""{_WAITING}, ranked AS (
                -- All waiting operations of the queue are ranked, also operations without room.
                SELECT id, row_number() OVER (
                    PARTITION BY queue, CASE WHEN %(of_product)s THEN product_id END
                    ORDER BY place_of_product, created_at, id) AS place
                FROM waiting)
            SELECT place FROM ranked WHERE id = %(id)s""",
            {**params(), "id": operation.pk, "of_product": of_product},
        )
        row = cursor.fetchone()
    return int(row[0]) if row else None
