"""Pruning: months that are older than their class is kept for are detached and dropped. No row is ever deleted one by one.

First the window shrinks (writers clamp to it from then on), then the partition is detached concurrently, then dropped: at no point
does an insert wait for a lock longer than LOCK_TIMEOUT. A run that dies anywhere is finished by the next.
"""

import time
from dataclasses import dataclass
from typing import Any

import psycopg
import structlog
from django.conf import settings
from django.db import OperationalError, connections

from audit import trail
from audit.actions import Action, Retention
from audit.actors import SYSTEM
from audit.partitions import OWNER

log = structlog.get_logger(__name__)

LOCK_TIMEOUT = "50ms"
TRIES = 40
PAUSE_S = 0.25


@dataclass(frozen=True)
class Pruned:
    """What a run dropped: names of partitions, and the rows they held."""

    partitions: list[str]
    rows: int


def prune() -> Pruned:
    """Drop every month that is past its retention, and write the run's row. Owner's role only."""
    days = {Retention.STANDARD: settings.ENV.audit_retention_days, Retention.PROBE: settings.ENV.audit_probe_retention_days}
    dropped = [(name, _drop(name)) for kind in Retention for name in _expired(kind, days[kind])]
    pruned = Pruned([name for name, _ in dropped], sum(rows for _, rows in dropped))
    metadata = {
        "partitions": pruned.partitions,
        "rows": pruned.rows,
        "standard_days": days[Retention.STANDARD],
        "probe_days": days[Retention.PROBE],
    }
    trail.record(Action.RETENTION_PRUNE, by=SYSTEM, metadata=metadata)
    log.info("retention_pruned", **metadata)
    return pruned


def _expired(kind: Retention, days: int) -> list[str]:
    """Names of the class's partitions whose last moment is older than `days`, oldest first, with the window moved past them.

    A partition that an earlier run detached and did not drop is among them.
    """
    with connections[OWNER].cursor() as cursor:
        cursor.execute(
            "WITH cut AS (SELECT date_trunc('month', (now() - make_interval(days => %(days)s)) AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' AS at)"
            " UPDATE audit_window SET starts = least(greatest(starts, cut.at), ends - interval '1 month') FROM cut WHERE retention = %(kind)s"
            " RETURNING to_char(starts AT TIME ZONE 'UTC', 'YYYY_MM')",
            {"days": days, "kind": kind.value},
        )
        first_kept = f"audit_log_{kind.value}_{cursor.fetchone()[0]}"
        cursor.execute(
            "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = current_schema()::regnamespace"
            " AND relname ~ %s AND relname < %s ORDER BY relname",
            [rf"^audit_log_{kind.value}_\d{{4}}_\d{{2}}$", first_kept],
        )
        return [row[0] for row in cursor.fetchall()]


def _drop(name: str) -> int:
    """Detach and drop one partition; returns how many rows went with it."""
    _detach(name)
    rows = int(_execute(f"SELECT count(*) FROM {name}")[0][0])
    _retried(f"DROP TABLE {name}")
    return rows


def _detach(name: str) -> None:
    """Take the partition out of the tree, whatever an earlier run left of that."""
    found = _execute(
        "SELECT inhparent::regclass::text, inhdetachpending FROM pg_inherits WHERE inhrelid = %s::regclass", [name]
    )
    if found:
        parent, pending = found[0]
        _retried(f"ALTER TABLE {parent} DETACH PARTITION {name} {'FINALIZE' if pending else 'CONCURRENTLY'}")


def _retried(statement: str) -> None:
    """Run DDL that gives up on a lock quickly, again and again, so that nobody queues behind it for long."""
    for left in reversed(range(TRIES)):
        try:
            _execute(statement)
            return
        except OperationalError as error:
            if not left or not isinstance(error.__cause__, psycopg.errors.LockNotAvailable):
                raise
        time.sleep(PAUSE_S)
        if statement.endswith("CONCURRENTLY"):
            return _detach(statement.split()[-2])  # the try may have left the detach pending


def _execute(statement: str, params: list[Any] | None = None) -> list[tuple[Any, ...]]:
    with connections[OWNER].cursor() as cursor:
        cursor.execute(f"SET lock_timeout = '{LOCK_TIMEOUT}'")
        cursor.execute(statement, params)
        return list(cursor.fetchall()) if cursor.description else []
