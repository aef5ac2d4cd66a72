"""The months of `audit_log`: made ahead by the owner's role, and counted.

How a partition is made is SQL, in the first migration (`audit_add_month`); this says when.
"""

from django.db import connections

AHEAD = 2  # never fewer future months than this; a third is made so that the second never is the last
OWNER = "owner"


def make_ahead(*, using: str = OWNER) -> None:
    """Make every month from the end of each window to AHEAD + 1 months from now, by the database's clock. Owner's role only."""
    with connections[using].cursor() as cursor:
        cursor.execute("SET lock_timeout = '2s'")
        cursor.execute(
            "SELECT audit_add_month(w.retention, month::date) FROM audit_window w, generate_series("
            " date_trunc('month', w.ends AT TIME ZONE 'UTC'),"
            " date_trunc('month', now() AT TIME ZONE 'UTC') + make_interval(months => %s), interval '1 month') month"
            " ORDER BY w.retention, month",
            [AHEAD + 1],
        )


def months_ahead() -> int:
    """Whole future months that every class of rows has a partition for; fewer than AHEAD is an alarm."""
    with connections["default"].cursor() as cursor:
        cursor.execute(
            "SELECT min((date_part('year', age) * 12 + date_part('month', age))::int) FROM (SELECT age("
            " w.ends AT TIME ZONE 'UTC', date_trunc('month', now() AT TIME ZONE 'UTC') + interval '1 month') FROM audit_window w) a(age)"
        )
        return int(cursor.fetchone()[0])
