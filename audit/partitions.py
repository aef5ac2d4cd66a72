"""The monthly partitions of `audit_log`: created ahead by the owner's role, and counted.

The functions here decide which months get a partition; the SQL function `audit_add_month` of the first migration creates one.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import structlog
from django.db import DatabaseError, Error, connections

log = structlog.get_logger(__name__)

AHEAD = 2  # at least 2 future months must exist; the keeper creates a third month as a reserve
OWNER = "owner"
_KEY = "SELECT pg_try_advisory_lock(hashtext('audit_log'), hashtext('keeper'))"


@contextmanager
def alone(*, wait_s: float = 0.0) -> Iterator[bool]:
    """Try to get the partitions' lock for up to `wait_s` seconds, and yield whether this process holds the lock.

    While the block holds the lock, no other keeper works on the partitions. The lock is polled: a session waiting for the lock
    inside PostgreSQL would hold a snapshot, and a concurrent detach waits for old snapshots. The end of the block closes the
    database session, whatever state the session is in, and thus releases the lock.
    """
    deadline = time.monotonic() + wait_s
    connection = connections[OWNER]
    try:
        pause_s = 0.1
        while not (got := _try()) and time.monotonic() < deadline:
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 1.0)
        yield got
    finally:
        connection.close()


def check_session() -> None:
    """Raise NoSession where the owner's connection leads through a pooler: `alone` and `SET` would be of no use there.

    While the database is away, nothing is raised.
    """
    connection = connections[OWNER]
    with suppress(Error):
        connection.ensure_connection()
    connection.close()


def _try() -> bool:
    with connections[OWNER].cursor() as cursor:
        cursor.execute(_KEY)
        return bool(cursor.fetchone()[0])


def make_ahead(*, wait_s: float = 60.0) -> list[str]:
    """Create every month from the end of each window to AHEAD + 1 months from now; return the names of the new partitions.

    "Now" is the time of the database's clock, in UTC. An absence of the keeper leaves no gap, because the first new month is the
    month after the last partition. If another keeper holds the lock, wait for up to `wait_s` seconds; then leave the work to the
    other keeper and return an empty list. Needs the owner's role. Logs `partitions_low` when only AHEAD months or fewer exist
    afterwards, early enough to act. Raises DatabaseError.
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
                """
                SELECT audit_add_month(w.retention, month::date)
                FROM audit_window w, generate_series(
                    -- The window ends at the start of the first month without a partition.
                    date_trunc('month', w.ends AT TIME ZONE 'UTC'),
                    -- The last month to create, counted from the current month.
                    date_trunc('month', now() AT TIME ZONE 'UTC') + make_interval(months => %s),
                    interval '1 month') month
                -- Oldest month first: audit_add_month widens a window only by a month next to the window.
                ORDER BY w.retention, month
                """,
                [AHEAD + 1],
            )
            return [name for (name,) in cursor.fetchall()]


def months_ahead() -> int:
    """Count the whole future months for which every retention class has a partition; fewer than AHEAD is an alarm.

    Zero when the current month is the last partition. Negative when the window has run out and new rows are clamped to its end.
    """
    with connections["default"].cursor() as cursor:
        cursor.execute(
            """
            -- min: the retention class with the fewest future months counts. No window at all counts as 0 months.
            SELECT coalesce(min((date_part('year', age) * 12 + date_part('month', age))::int), 0)
            -- age: the calendar interval from the start of the next month to the end of the window.
            FROM audit_window, LATERAL age(
                ends AT TIME ZONE 'UTC', date_trunc('month', now() AT TIME ZONE 'UTC') + interval '1 month') age
            """
        )
        return int(cursor.fetchone()[0])
