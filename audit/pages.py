"""Pages of the log by key: (timestamp, id), newest first. Nothing is counted, and an old page costs what the first one does."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from django.db.models import BigIntegerField, BooleanField, QuerySet
from django.db.models.expressions import RawSQL

_COLUMNS = ("text", "moment", "id")
_MOMENT = RawSQL("(extract(epoch FROM audit_log.timestamp) * 1000000)::bigint", (), output_field=BigIntegerField())
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_CURSOR = re.compile(r"(older|newer)\.(\d{1,18})\.(\d{1,18})", re.ASCII)


@dataclass(frozen=True)
class Page:
    """The text of each row, newest first, and the cursors of the pages on both sides; an empty one: there is none."""

    rows: list[str]
    older: str = ""
    newer: str = ""


def read(found: "QuerySet[Any]", text: RawSQL, size: int, cursor: str = "") -> Page:
    """At most `size` rows: the newest, or those next to the row that `cursor` names; `text` is what becomes of a row.

    Raises ValueError for what is no cursor.

    Whichever way the cursors are followed, each row that is there all the time comes once: a time that many rows share is no
    reason to skip or repeat any.
    """
    found = found.annotate(text=text, moment=_MOMENT)
    if not cursor:
        return _read_older(found, size)
    way, moment, key = _parse(cursor)
    if way == "older":
        return _read_older(_beyond(found, "<", moment, key), size, is_first=False)
    rows = list(_beyond(found, ">", moment, key).order_by("timestamp", "id").values_list(*_COLUMNS)[: size + 1])
    more, rows = len(rows) > size, rows[:size][::-1]
    return Page([row[0] for row in rows], _cursor("older", rows[-1]) if rows else "", _cursor("newer", rows[0]) if more else "")


def _read_older(found: "QuerySet[Any]", size: int, *, is_first: bool = True) -> Page:
    rows = list(found.order_by("-timestamp", "-id").values_list(*_COLUMNS)[: size + 1])
    more, rows = len(rows) > size, rows[:size]
    newer = _cursor("newer", rows[0]) if rows and not is_first else ""
    return Page([row[0] for row in rows], _cursor("older", rows[-1]) if more else "", newer)


def _beyond(found: "QuerySet[Any]", side: str, moment: datetime, key: int) -> "QuerySet[Any]":
    """Rows on one side of (moment, key). The bound on the time alone is redundant, and what the planner prunes partitions by."""
    row = RawSQL(f"(audit_log.timestamp, audit_log.id) {side} (%s, %s)", (moment, key), output_field=BooleanField())  # noqa: S611 (ours)
    return found.filter(row, **{"timestamp__lte" if side == "<" else "timestamp__gte": moment})


def _cursor(way: str, row: tuple[str, int, int]) -> str:
    return f"{way}.{row[1]}.{row[2]}"


def _parse(cursor: str) -> tuple[str, datetime, int]:
    match = _CURSOR.fullmatch(cursor)
    if match is None:
        raise ValueError(cursor)
    try:
        return match[1], _EPOCH + timedelta(microseconds=int(match[2])), int(match[3])
    except OverflowError as error:
        raise ValueError(cursor) from error
