"""Destroyed engines and ended operations are kept as long as the rows of the audit log that name them.

Called by the keeper at the end of a run of `audit.retention`, with the owner's role. The keeper loads no models of engines.
"""

import time
from typing import Any

from django.db import connections

from audit.partitions import OWNER

BATCH = 500
PAUSE_S = 0.02  # between two batches: writers come first

# An operation that ended before the log's first month has no row in the log: a row's time is the start of an attempt. Repeated
# calls are answered from the operation for a day, and the log's first month may have begun today.
_OPERATIONS = """
DELETE FROM engines_operation WHERE id IN (
    SELECT o.id FROM engines_operation o, audit_window w
    WHERE w.retention = 'standard' AND o.created_at < w.starts AND o.finished_at < least(w.starts, now() - interval '2 days')
    ORDER BY o.created_at LIMIT %(batch)s
    FOR UPDATE OF o SKIP LOCKED)
"""

# Engines that were destroyed before the log's first month: candidates, read once.
_TOMBSTONES = """
SELECT array_agg(e.id ORDER BY e.destroyed_at) FROM engines_engine e, audit_window w
WHERE w.retention = 'standard' AND e.destroyed_at < w.starts
"""

_ENGINES = """
DELETE FROM engines_engine WHERE id IN (
    SELECT e.id FROM engines_engine e
    WHERE e.id = ANY(%(ids)s) AND e.destroyed_at IS NOT NULL
      AND NOT EXISTS (SELECT FROM audit_log a WHERE a.engine_id = e.id)
      AND NOT EXISTS (SELECT FROM engines_operation o WHERE o.engine_id = e.id)
    FOR UPDATE OF e SKIP LOCKED)
"""


def prune() -> dict[str, int]:
    """Remove what no row of the log names, in batches; return how many `operations` and `engines` were removed.

    Each batch is a transaction of its own: a run that dies leaves the rest to the next run. Raises django.db.Error.
    """
    return {"operations": _prune_operations(), "engines": _prune_engines()}


def _prune_operations() -> int:
    removed = last = _execute(_OPERATIONS, batch=BATCH)
    while last:
        time.sleep(PAUSE_S)
        last = _execute(_OPERATIONS, batch=BATCH)
        removed += last
    return removed


def _prune_engines() -> int:
    with connections[OWNER].cursor() as cursor:
        cursor.execute(_TOMBSTONES)
        ids = cursor.fetchone()[0] or []
    removed = 0
    for first in range(0, len(ids), BATCH):
        removed += _execute(_ENGINES, ids=ids[first : first + BATCH])
        time.sleep(PAUSE_S)
    return removed


def _execute(statement: str, **params: Any) -> int:
    with connections[OWNER].cursor() as cursor:
        cursor.execute(statement, params)
        return int(cursor.rowcount)
