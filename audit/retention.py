"""Pruning of `audit_log`: partitions older than their retention are detached and dropped. Single rows are never deleted.

A run has five steps. A run may die at any point, because the next run continues from the state left by every step:

1. The window shrinks. From the commit on, writers clamp timestamps to the remaining months.
2. The rows of all writers who may have seen the old window are counted (`audit.counts`); the run waits a while for these writers.
3. Expired partitions are detached concurrently, oldest first. No insert waits for a lock; the run waits a while for readers.
4. What upper floors keep only as long as the rows is removed (`PRUNED_WITH_THE_LOG`).
5. Detached partitions are dropped, and their sums with them. The audit row of the run is written in the same transaction.
"""

import time
from dataclasses import dataclass, field
from typing import Any

import psycopg
import structlog
from django.db import OperationalError, connections, transaction
from django.utils.module_loading import import_string

from audit import counts, sums, trail
from audit.actions import Action, Retention
from audit.actors import SYSTEM
from audit.partitions import OWNER, alone
from common.settings import settings

log = structlog.get_logger(__name__)

# Below deadlock_timeout (1 s): a reader with an old snapshot, reading the month again, deadlocks with the detach. The detach then
# gives up first, and PostgreSQL cancels no reader.
DETACH_TIMEOUT = "200ms"
# Above deadlock_timeout: PostgreSQL then cancels an autovacuum of the table. No query queues for a detached table meanwhile.
DROP_TIMEOUT = "2s"
FOR_EVER = 365_000  # days, about 1000 years; keeps a huge setting within PostgreSQL's calendar
PATIENCE_S = 10.0  # total waiting time of a run for readers
PAUSE_S = 0.25  # between two tries to detach a partition


@dataclass
class Pruned:
    """The result of a run: names of dropped partitions, number of dropped rows, names of partitions left to a later run.

    `others`: how many rows of other tables left with the log, by name.
    """

    partitions: list[str] = field(default_factory=list)
    rows: int = 0
    postponed: list[str] = field(default_factory=list)
    others: dict[str, int] = field(default_factory=dict)


def prune(patience_s: float = PATIENCE_S) -> Pruned | None:
    """Drop every expired partition and write the audit row of the run. Needs the owner's role.

    The run waits up to `patience_s` seconds in total for readers. A partition still being read afterwards is postponed to the
    next run. Returns None, and writes no row, while another keeper holds the lock. Raises django.db.Error.
    """
    with alone() as free:
        if not free:
            log.info("retention_busy")
            return None
        run, deadline = Pruned(), time.monotonic() + patience_s
        detached = [name for kind in Retention for name in _detach_expired(kind, run, deadline)]
        for name in settings.PRUNED_WITH_THE_LOG:
            run.others |= import_string(name)()
        _drop(detached, run)
        counts.fold()
    log.info("retention_pruned", partitions=run.partitions, rows=run.rows, postponed=run.postponed, **run.others)
    return run


def _days(kind: Retention) -> int:
    return int(settings.ENV.audit_probe_retention_days if kind is Retention.PROBE else settings.ENV.audit_retention_days)


def _detach_expired(kind: Retention, run: Pruned, deadline: float) -> list[str]:
    """Detach the expired partitions of a class, and return the names of the detached partitions.

    A partition kept busy by a reader is postponed, along with all later partitions of the class; all, while a writer may still
    write into them.
    """
    expired = _find_expired(kind, _shrink_window(kind))
    if expired and not counts.catch_up(deadline):
        run.postponed += expired
        return []
    for number, name in enumerate(expired):
        if not _detach(name, deadline):
            run.postponed += expired[number:]
            return expired[:number]
    return expired


def _shrink_window(kind: Retention) -> str:
    """Move the window's start to the first month kept, and return the month as `2026_11`.

    The first month kept is at most the current month and at most the last existing month: a window is never empty.
    """
    rows = _execute(
        """
        -- cut: the start of the month, in UTC, of the oldest moment within the retention
        WITH cut AS (
            SELECT date_trunc('month', (now() - make_interval(days => %(days)s)) AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' AS at)
        UPDATE audit_window
        -- greatest: the window never grows back over dropped months. least: at least the last month stays.
        SET starts = least(greatest(starts, cut.at), (ends AT TIME ZONE 'UTC' - interval '1 month') AT TIME ZONE 'UTC')
        FROM cut WHERE retention = %(kind)s
        RETURNING to_char(starts AT TIME ZONE 'UTC', 'YYYY_MM')
        """,
        {"days": min(_days(kind), FOR_EVER), "kind": kind.value},
    )
    return str(rows[0][0])


def _find_expired(kind: Retention, first_kept: str) -> list[str]:
    """Return the tables of a class's months before `first_kept`, oldest first.

    The tables are attached, half detached, or already detached by an earlier run.
    """
    rows = _execute(
        """
        SELECT relname FROM pg_class
        -- Tables are found by name, because a detached table is no longer a partition of audit_log.
        WHERE relkind = 'r' AND relnamespace = current_schema()::regnamespace AND relname ~ %(form)s
          -- Names end in YYYY_MM, and therefore sort by time.
          AND relname < %(first)s
        ORDER BY relname
        """,
        {"form": rf"^audit_log_{kind.value}_\d{{4}}_\d{{2}}$", "first": f"audit_log_{kind.value}_{first_kept}"},
    )
    return [name for (name,) in rows]


def _detach(name: str, deadline: float) -> bool:
    """Detach the partition, or finish an interrupted detach; return False when readers keep the partition to the deadline."""
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
    """Return the statement to detach the partition or to finish the detach; empty once the partition is detached."""
    found = _execute(
        """
        SELECT inhparent::regclass::text,
               inhdetachpending  -- true after an interrupted DETACH CONCURRENTLY; only FINALIZE is possible then
        FROM pg_inherits WHERE inhrelid = %(name)s::regclass
        """,
        {"name": name},
    )
    if not found:
        return ""
    parent, is_pending = found[0]
    return f"ALTER TABLE {parent} DETACH PARTITION {name} {'FINALIZE' if is_pending else 'CONCURRENTLY'}"


@transaction.atomic(using=OWNER)
def _drop(detached: list[str], run: Pruned) -> None:
    """Drop the tables and write the audit row of the run, in one transaction. A table being read is postponed."""
    for name in detached:
        try:
            # A savepoint per table: a lock time-out undoes one drop and not the whole run.
            with transaction.atomic(using=OWNER):
                rows = _execute(f"SELECT count(*) FROM {name}")[0][0]
                _execute(f"DROP TABLE {name}", timeout=DROP_TIMEOUT)
                sums.forget(name)
        except OperationalError as error:
            if not isinstance(error.__cause__, psycopg.errors.LockNotAvailable):
                raise
            run.postponed.append(name)
        else:
            run.partitions.append(name)
            run.rows += int(rows)
    kept = {"standard_days": _days(Retention.STANDARD), "probe_days": _days(Retention.PROBE)}
    metadata = {"partitions": run.partitions, "rows": run.rows, "postponed": run.postponed, **run.others, **kept}
    trail.record(Action.RETENTION_PRUNE, by=SYSTEM, metadata=metadata, using=OWNER)


def _execute(statement: str, params: dict[str, Any] | None = None, *, timeout: str = DETACH_TIMEOUT) -> list[tuple[Any, ...]]:
    """Run one statement as the owner and return its rows. Raises OperationalError when a lock takes longer than `timeout`."""
    with connections[OWNER].cursor() as cursor:
        cursor.execute(f"SET lock_timeout = '{timeout}'")
        cursor.execute(statement, params)
        return list(cursor.fetchall()) if cursor.description else []
