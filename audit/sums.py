"""Sums of closed rows, kept by the keeper: a row that was changed, removed or added later disagrees with the sum of its day.

A row is *closed* when no transaction can add a row with its number or a lower one any more. The table `audit_closed` has the
highest number up to which all rows are closed and summed. The table `audit_sum` has, for each retention class, each month of
`timestamp` (a partition) and each UTC day of `written_at`, the number of closed rows and the sum of their hashes. Numbers decide
which rows are summed, not times: a row that a stepped clock has written into an earlier day joins the sum of this day.

The sums are no seal: whoever may write both tables can write fitting sums (docs/decisions/1151-sums-of-closed-rows.md).
"""

import time
from dataclasses import dataclass
from typing import Any

import structlog
from django.db import connections, transaction

from audit.partitions import OWNER

log = structlog.get_logger(__name__)

PATIENCE_S = 10.0  # for transactions that write to the log, when a run begins
RUN_S = 60.0  # a run begins no further batch afterwards; the first sums of a large log take several runs
BATCH = 100_000  # row numbers summed in one transaction, within a second

# The columns of a row that are summed, in this order. A further column needs a new VERSION: the keeper then sums all rows anew.
VERSION = 1
_COLUMNS = (
    "id", "timestamp", "product_id", "user_id", "engine_id", "action", "actor", "metadata", "duration_ms", "product_slug",
    "from_status", "to_status", "engine_seq", "operation_id", "request_id", "txid", "retention", "call_id", "key_id", "client_ip",
    "user_agent", "on_behalf_of", "written_at", "stretch",
)  # fmt: skip
HASH = f"hash_record_extended(ROW({', '.join(f'r.{column}' for column in _COLUMNS)}), 0)"
"""SQL: 64 bits of the row `r`. The types' hashes depend on no setting of the session, and on no text of a time or an address."""
MONTH = "date_trunc('month', r.timestamp, 'UTC') AT TIME ZONE 'UTC'"
DAY = "(coalesce(r.written_at, r.timestamp) AT TIME ZONE 'UTC')::date"
"""SQL: the day of the row `r` among the sums, in UTC; rows from before the column `written_at` count for their `timestamp`."""

# Another value than the stored one: the sums were made by other code, or by a server whose hashes differ (another byte order).
FORM = f"""('{VERSION}:' || hash_record_extended(ROW(1::bigint, 'text'::text, '{{"a": [1, null, "b"]}}'::jsonb, '10.0.0.1'::inet,
    '2026-01-01 00:00:00+00'::timestamptz, '00000000-0000-4000-8000-000000000001'::uuid, 1::int, '1'::xid8), 0))"""


@dataclass(frozen=True)
class Closed:
    """The number up to which all rows are closed and summed, and whether the sums can be compared with the rows here."""

    upto: int
    is_comparable: bool


def read_closed() -> Closed:
    """The position of the sums, as the application's role reads it; 0 before the keeper's first run."""
    with connections["default"].cursor() as cursor:
        cursor.execute(f"SELECT upto, form = {FORM} FROM audit_closed")
        return Closed(*(cursor.fetchone() or (0, True)))


def keep(patience_s: float = PATIENCE_S, run_s: float = RUN_S) -> int:
    """Sum the rows that were closed since the last run; return the number up to which all rows are summed.

    A run does nothing while a transaction writes to the log for more than `patience_s` seconds; the next run makes up for it.
    Needs the owner's role. Two runs at once do the work of one. Raises django.db.Error.
    """
    deadline = time.monotonic() + run_s
    last = _find_closed(patience_s)
    while (upto := _sum_next(last)) < last and time.monotonic() < deadline:
        pass
    return upto


def _find_closed(patience_s: float) -> int:
    """The highest row number given out, once every transaction that may have got this number or a lower one has ended.

    Each writer holds a lock on the log before its row gets a number, and to the end of its transaction. So the transactions that
    hold the lock when the number has been read are all that need to end. Returns 0 when one of them outlasts `patience_s`.
    """
    last = int(_execute("SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM audit_log_id_seq")[0][0])
    writers = [writer for (writer,) in _execute(_WRITERS)]
    deadline = time.monotonic() + patience_s
    while _execute("SELECT 1 FROM pg_locks WHERE virtualtransaction = ANY(%(writers)s) LIMIT 1", {"writers": writers}):
        if time.monotonic() > deadline:
            log.warning("rows_not_closed", writers=len(writers))
            return 0
        time.sleep(0.2)  # without a lock of ours that anybody could wait for
    return last


_WRITERS = """
SELECT DISTINCT l.virtualtransaction FROM pg_locks l
JOIN pg_database d ON d.oid = l.database AND d.datname = current_database()
WHERE l.mode = 'RowExclusiveLock' AND l.granted AND l.relation IN (SELECT relid FROM pg_partition_tree('audit_log'))
"""


@transaction.atomic(using=OWNER)
def _sum_next(last: int) -> int:
    """Add the next BATCH of row numbers, up to `last`, to the sums; return the number up to which all rows are summed."""
    _begin()
    upto = int(_execute("SELECT upto FROM audit_closed FOR UPDATE")[0][0])  # another keeper waits here
    following = min(upto + BATCH, last)
    if following <= upto:
        return upto
    _execute(_ADD, {"upto": upto, "following": following})
    _execute("UPDATE audit_closed SET upto = %(following)s, closed_at = now()", {"following": following})
    return following


def _begin() -> None:
    """Begin the sums anew at number 0 if there are none, or none of this form."""
    begun = _execute(
        f"""
        INSERT INTO audit_closed AS c (upto, form) VALUES (0, {FORM})
        ON CONFLICT (is_single) DO UPDATE SET upto = 0, form = excluded.form WHERE c.form <> excluded.form
        RETURNING form
        """
    )
    if begun:
        _execute("DELETE FROM audit_sum")
        log.info("sums_begun", form=begun[0][0])


_ADD = f"""
INSERT INTO audit_sum AS s (retention, month, day, rows, total)
SELECT r.retention, {MONTH}, {DAY}, count(*), sum({HASH})
FROM audit_log r WHERE r.id > %(upto)s AND r.id <= %(following)s
GROUP BY 1, 2, 3
-- A day gets its rows in several runs.
ON CONFLICT (retention, month, day) DO UPDATE SET rows = s.rows + excluded.rows, total = s.total + excluded.total
"""


def forget(partition: str) -> None:
    """Remove the sums of a dropped month, such as `audit_log_standard_2026_11`, in the transaction that drops the partition."""
    retention, year, month = partition.removeprefix("audit_log_").rsplit("_", 2)
    _execute(
        "DELETE FROM audit_sum WHERE retention = %(retention)s AND month = %(month)s::date",
        {"retention": retention, "month": f"{year}-{month}-01"},
    )


def _execute(statement: str, params: dict[str, Any] | None = None) -> list[tuple[Any, ...]]:
    with connections[OWNER].cursor() as cursor:
        cursor.execute(statement, params)
        return list(cursor.fetchall()) if cursor.description else []
