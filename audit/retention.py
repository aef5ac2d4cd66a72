"""Pruning: months that are older than their class is kept for are detached and dropped. No row is ever deleted one by one.

Three steps, each of which leaves a state that the next run goes on from, so that a run may die anywhere:

1. the window shrinks: from that commit on, writers clamp to what stays;
2. partitions are detached concurrently, oldest first: no insert waits for a lock, a reader of the month is waited for a while;
3. what is detached is dropped, and the run's row says so in the same transaction.
"""

import time
from dataclasses import dataclass, field
from typing import Any

import psycopg
import structlog
from django.db import OperationalError, connections, transaction

from audit import trail
from audit.actions import Action, Retention
from audit.actors import SYSTEM
from audit.partitions import OWNER, alone
from common.settings import settings

log = structlog.get_logger(__name__)

# Below deadlock_timeout (1 s): a reader with an old snapshot that comes back to a month being detached goes on, not cancelled.
DETACH_TIMEOUT = "200ms"
DROP_TIMEOUT = "2s"  # above it: nobody queues for a detached table, and an autovacuum on it is cancelled
FOR_EVER = 365_000  # days; further back PostgreSQL's calendar ends
PATIENCE_S = 10.0  # that a run waits for readers, all in all
PAUSE_S = 0.25


@dataclass
class Pruned:
    """A run: names of the partitions it dropped, the rows they held, and names of those that a later run has to drop."""

    partitions: list[str] = field(default_factory=list)
    rows: int = 0
    postponed: list[str] = field(default_factory=list)


def prune(patience_s: float = PATIENCE_S) -> Pruned | None:
    """Drop every month that is past its retention, and write the run's row. Owner's role only.

    A month that somebody still reads once the run has waited for `patience_s` is postponed to the next run. None, and no row,
    while another keeper is at work.
    """
    with alone() as free:
        if not free:
            log.info("retention_busy")
            return None
        run, deadline = Pruned(), time.monotonic() + patience_s
        detached = [name for kind in Retention for name in _detach_expired(kind, run, deadline)]
        _drop(detached, run)
    log.info("retention_pruned", partitions=run.partitions, rows=run.rows, postponed=run.postponed)
    return run


def _days(kind: Retention) -> int:
    return int(settings.ENV.audit_probe_retention_days if kind is Retention.PROBE else settings.ENV.audit_retention_days)


def _detach_expired(kind: Retention, run: Pruned, deadline: float) -> list[str]:
    """Detach what is expired of the class; returns what is detached now. One that cannot be postpones those after it."""
    expired = _find_expired(kind, _shrink_window(kind))
    for number, name in enumerate(expired):
        if not _detach(name, deadline):
            run.postponed += expired[number:]
            return expired[:number]
    return expired


def _shrink_window(kind: Retention) -> str:
    """Move the window's start to the first month that is kept; returns that month as `2026_11`.

    That is never later than the present month, nor than the last there is: a window is never empty.
    """
    rows = _execute(
        """
        WITH cut AS (
            SELECT date_trunc('month', (now() - make_interval(days => %(days)s)) AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' AS at)
        UPDATE audit_window
        SET starts = least(greatest(starts, cut.at), (ends AT TIME ZONE 'UTC' - interval '1 month') AT TIME ZONE 'UTC')
        FROM cut WHERE retention = %(kind)s
        RETURNING to_char(starts AT TIME ZONE 'UTC', 'YYYY_MM')
        """,
        {"days": min(_days(kind), FOR_EVER), "kind": kind.value},
    )
    return str(rows[0][0])


def _find_expired(kind: Retention, first_kept: str) -> list[str]:
    """Tables of the class's months before `first_kept`, oldest first: attached, half detached, or detached by an earlier run."""
    rows = _execute(
        "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = current_schema()::regnamespace"
        " AND relname ~ %(form)s AND relname < %(first)s ORDER BY relname",
        {"form": rf"^audit_log_{kind.value}_\d{{4}}_\d{{2}}$", "first": f"audit_log_{kind.value}_{first_kept}"},
    )
    return [name for (name,) in rows]


def _detach(name: str, deadline: float) -> bool:
    """Take the partition out of the tree, whatever an earlier try left of that; False when it is read until the deadline."""
    while how := _left_to_detach(name):
        try:
            _execute(how)
        except OperationalError as error:
            if not isinstance(error.__cause__, psycopg.errors.LockNotAvailable):
                raise
            if time.monotonic() > deadline:
                return False
            time.sleep(PAUSE_S)
    return True


def _left_to_detach(name: str) -> str:
    """The statement that detaches the partition, or finishes that; empty once it is detached."""
    found = _execute(
        "SELECT inhparent::regclass::text, inhdetachpending FROM pg_inherits WHERE inhrelid = %(name)s::regclass", {"name": name}
    )
    if not found:
        return ""
    parent, is_pending = found[0]
    return f"ALTER TABLE {parent} DETACH PARTITION {name} {'FINALIZE' if is_pending else 'CONCURRENTLY'}"


@transaction.atomic(using=OWNER)
def _drop(detached: list[str], run: Pruned) -> None:
    """Drop the tables and write the run's row, together. One that is being read is postponed."""
    for name in detached:
        try:
            with transaction.atomic(using=OWNER):
                rows = _execute(f"SELECT count(*) FROM {name}")[0][0]
                _execute(f"DROP TABLE {name}", timeout=DROP_TIMEOUT)
        except OperationalError as error:
            if not isinstance(error.__cause__, psycopg.errors.LockNotAvailable):
                raise
            run.postponed.append(name)
        else:
            run.partitions.append(name)
            run.rows += int(rows)
    kept = {"standard_days": _days(Retention.STANDARD), "probe_days": _days(Retention.PROBE)}
    metadata = {"partitions": run.partitions, "rows": run.rows, "postponed": run.postponed, **kept}
    trail.record(Action.RETENTION_PRUNE, by=SYSTEM, metadata=metadata, using=OWNER)


def _execute(statement: str, params: dict[str, Any] | None = None, *, timeout: str = DETACH_TIMEOUT) -> list[tuple[Any, ...]]:
    """Run one statement of the owner's that gives up on a lock after `timeout`; returns its rows."""
    with connections[OWNER].cursor() as cursor:
        cursor.execute(f"SET lock_timeout = '{timeout}'")
        cursor.execute(statement, params)
        return list(cursor.fetchall()) if cursor.description else []
