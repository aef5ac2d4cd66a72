"""The rows of a month: each looked at by itself, and all compared with the sums that the keeper has made of them."""

from dataclasses import dataclass
from datetime import date
from uuid import UUID

from django.db import connection

from audit import sums
from audit.sums import Closed
from fleet.consistency import rows


@dataclass(frozen=True)
class Month:
    """A partition of the log: a retention class, a month of `timestamp` as `2026_11`, and whether it is in the log's window.

    A month that has left the window is about to be dropped, with its sums.
    """

    retention: str
    name: str
    is_kept: bool

    def __str__(self) -> str:
        return f"{self.name.replace('_', '-')} ({self.retention})"

    @property
    def condition(self) -> str:
        """SQL: the rows `r` of the month. PostgreSQL then plans for the one partition."""
        starts = f"'{self.name.replace('_', '-')}-01 00:00:00+00'::timestamptz"
        return f"r.retention = '{self.retention}' AND r.timestamp >= {starts} AND r.timestamp < {_following(starts)}"


def _following(starts: str) -> str:
    """SQL: the start of the month after the month that starts at `starts`."""
    return f"date_trunc('month', {starts} + interval '32 days', 'UTC')"


@dataclass(frozen=True)
class Day:
    """The rows of a month that were written on a day: as they are, and as the keeper has summed them.

    `closed` counts the rows up to the keeper's position, `bad` the rows that cannot be true. `summed` and `total` are the
    keeper's.
    """

    day: date | None  # None: all days without a sum
    rows: int
    bad: int
    closed: int
    total: int
    summed: int
    summed_total: int

    @property
    def agrees(self) -> bool:
        return (self.closed, self.total) == (self.summed, self.summed_total)

    def __str__(self) -> str:
        if self.closed == self.summed:
            return f"at least 1 of {self.summed} rows was changed: the keeper has summed other contents"
        differ, how = abs(self.summed - self.closed), "missing" if self.summed > self.closed else "too many"
        return f"{differ} rows are {how}: the keeper has summed {self.summed} rows, {self.closed} are there"


def list_months(since: int) -> list[Month]:
    """The months with rows above the number `since`, of the classes one after the other, oldest first.

    For 0 also the months without a row that have a sum.
    """
    with connection.cursor() as cursor:
        cursor.execute(_MONTHS.replace("__SINCE__", f"{since:d}"))
        return [Month(*found) for found in cursor.fetchall()]


_MONTHS = f"""
SELECT name[1], name[2], m.starts >= w.starts
FROM pg_partition_tree('audit_log')
CROSS JOIN LATERAL regexp_match(relid::regclass::text, '^audit_log_(.+)_([0-9]{{4}}_[0-9]{{2}})$') name
CROSS JOIN LATERAL (SELECT to_date(name[2], 'YYYY_MM')::timestamp AT TIME ZONE 'UTC' AS starts) m
JOIN audit_window w ON w.retention = name[1]
WHERE isleaf AND (
    EXISTS (SELECT FROM audit_log r WHERE r.retention = name[1]
        AND r.timestamp >= m.starts AND r.timestamp < {_following("m.starts")} AND r.id > __SINCE__)
    OR __SINCE__ = 0 AND EXISTS (SELECT FROM audit_sum s WHERE s.retention = name[1] AND s.month = to_date(name[2], 'YYYY_MM')))
ORDER BY name[1] DESC, name[2]
"""


def read(month: Month, closed: Closed, first_written: int) -> list[Day]:
    """Look at each row of the month, and return the days on which rows were written or summed."""
    sieve = rows.sift(first_written)
    summed = f"(SELECT * FROM audit_sum WHERE retention = '{month.retention}' AND month = to_date('{month.name}', 'YYYY_MM'))"
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            SELECT coalesce(f.day, s.day), coalesce(f.rows, 0), coalesce(bad, 0), coalesce(closed, 0), coalesce(f.total, 0),
                coalesce(s.rows, 0), coalesce(s.total, 0)
            FROM (
                -- Grouped by a column of few values, and not by an expression: PostgreSQL then uses several processors. The rows
                -- of all days without a sum are one group.
                SELECT s.day, count(*) AS rows, count(*) FILTER (WHERE {sieve.is_bad}) AS bad,
                    count(*) FILTER (WHERE is_closed) AS closed, sum({sums.HASH}) FILTER (WHERE is_closed) AS total
                FROM audit_log r {sieve.joins}
                LEFT JOIN {summed} s ON s.day = {sums.DAY}
                CROSS JOIN LATERAL (SELECT r.id <= {closed.upto:d} AS is_closed) position
                WHERE {month.condition} GROUP BY 1
            ) f
            -- FULL: keeps days of which no row is left.
            FULL JOIN {summed} s ON s.day = f.day
            ORDER BY 1
            """
        )
        return [Day(day, *map(int, figures)) for day, *figures in cursor.fetchall()]


def find_bad(month: Month, first_written: int) -> list[tuple[UUID | None, UUID | None]]:
    """The engines of the month's rows that cannot be true, each with an engine whose operation the row names; None: no engine."""
    sieve = rows.sift(first_written)
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            SELECT DISTINCT r.engine_id, (SELECT o.engine_id FROM engines_operation o WHERE o.id = r.operation_id)
            FROM audit_log r {sieve.joins} WHERE {month.condition} AND {sieve.is_bad} ORDER BY 1, 2
            """
        )
        return list(cursor.fetchall())
