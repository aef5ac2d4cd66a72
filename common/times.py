"""The format of times in API answers, and the database's clock."""

from datetime import UTC, datetime
from typing import overload

from django.db import connection


@overload
def iso(moment: datetime) -> str: ...
@overload
def iso(moment: None) -> None: ...
@overload
def iso(moment: datetime | None) -> str | None: ...
def iso(moment: datetime | None) -> str | None:
    """ISO 8601 in UTC with milliseconds and `Z`; None stays None."""
    return None if moment is None else moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def database_now() -> datetime:
    """The time by the database's clock, which is used for decisions. Raises django.db.Error."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT statement_timestamp()")
        now: datetime = cursor.fetchone()[0]
        return now
