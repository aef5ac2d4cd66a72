"""The months of `audit_log`: made ahead by the owner's role, and counted.

How a partition is made is SQL, in the first migration (`audit_add_month`); this says when.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from django.db import DatabaseError, connections

log = structlog.get_logger(__name__)

AHEAD = 2  # never fewer future months than this; a third is made so that the second never is the last
OWNER = "owner"
_KEY = "SELECT pg_try_advisory_lock(hashtext('audit_log'), hashtext('keeper'))"


@contextmanager
def alone(*, wait_s: float = 0.0) -> Iterator[bool]:
    """Yield whether no other keeper works on the partitions; none will begin to inside the block.

    Polls instead of waiting in the database: a session that waits there holds a snapshot, and a detach waits for that. The
    session ends with the block, whatever state it is in, and gives the lock back.
    """
    deadline = time.monotonic() + wait_s
    connection = connections[OWNER]
    try:
        while not (got := _try()) and time.monotonic() < deadline:
            time.sleep(0.1)
        yield got
    finally:
        connection.close()


def _try() -> bool:
    with connections[OWNER].cursor() as cursor:
        cursor.execute(_KEY)
        return bool(cursor.fetchone()[0])


def make_ahead(*, wait_s: float = 60.0) -> list[str]:
    """Make every month from the end of each window to AHEAD + 1 months from now, by the database's clock; returns their names.

    However long the keeper was away, no month between is left out. Another keeper that is at work is waited for up to `wait_s`
    seconds, and then left to it. Owner's role only. Says so in the log when no more than AHEAD months are there afterwards, which
    is while there is still time.
    """
    try:
        made = _make_ahead(wait_s)
    except DatabaseError as error:
        log.warning("partitions_not_made", error=type(error).__name__)
        raise
    if (left := months_ahead()) <= AHEAD:
        log.warning("partitions_low", months_ahead=left)
    return made


def _make_ahead(wait_s: float) -> list[str]:
    with alone(wait_s=wait_s) as free:
        if not free:
            log.warning("partitions_busy")
            return []
        with connections[OWNER].cursor() as cursor:
            cursor.execute("SET lock_timeout = '2s'")
            cursor.execute(
                "SELECT audit_add_month(w.retention, month::date) FROM audit_window w, generate_series("
                " date_trunc('month', w.ends AT TIME ZONE 'UTC'),"
                " date_trunc('month', now() AT TIME ZONE 'UTC') + make_interval(months => %s), interval '1 month') month"
                " ORDER BY w.retention, month",
                [AHEAD + 1],
            )
            return [name for (name,) in cursor.fetchall()]


def months_ahead() -> int:
    """Whole future months that every class of rows has a partition for; fewer than AHEAD is an alarm.

    Zero when the present month is the last one, less when the window has run out and rows are clamped to its end.
    """
    with connections["default"].cursor() as cursor:
        cursor.execute(
            """
            SELECT coalesce(min((date_part('year', age) * 12 + date_part('month', age))::int), 0)
            FROM audit_window, LATERAL age(
                ends AT TIME ZONE 'UTC', date_trunc('month', now() AT TIME ZONE 'UTC') + interval '1 month') age
            """
        )
        return int(cursor.fetchone()[0])
