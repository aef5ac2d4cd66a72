"""Lists that are paged by key, (a time, the id), newest first: nothing is counted, an old page costs what the first one does."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg
from django.contrib import messages
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.views.main import ChangeList
from django.core.exceptions import ValidationError
from django.db import OperationalError, connection, transaction
from django.db.models import Q, QuerySet
from django.http import HttpRequest

OLDER, NEWER = "older", "newer"
LIMIT_S = 5.0


class TookTooLong(Exception):
    """The database was asked for something that no index answers, and was stopped."""


@dataclass(frozen=True)
class Page:
    """Rows, newest first, and the cursors of the pages on both sides; an empty cursor means that there is none."""

    rows: list[Any]
    older: str = ""
    newer: str = ""


def read(found: "QuerySet[Any]", field: str, size: int, *, older: str = "", newer: str = "") -> Page:
    """At most `size` rows: the newest, or those next to a cursor. Raises ValueError for a cursor that is none of ours."""
    if newer and not older:
        return _read_newer(found, field, size, newer)
    before = _beyond(found, field, older, "lt") if older else found
    rows = list(before.order_by(f"-{field}", "-pk")[: size + 1])
    more, rows = len(rows) > size, rows[:size]
    return Page(rows, _cursor(rows[-1], field) if more else "", _cursor(rows[0], field) if older and rows else "")


def _read_newer(found: "QuerySet[Any]", field: str, size: int, cursor: str) -> Page:
    rows = list(_beyond(found, field, cursor, "gt").order_by(field, "pk")[: size + 1])
    if len(rows) <= size:  # the top is reached: show the whole first page
        return read(found, field, size)
    rows = rows[:size][::-1]
    return Page(rows, _cursor(rows[-1], field), _cursor(rows[0], field))


def _beyond(found: "QuerySet[Any]", field: str, cursor: str, side: str) -> "QuerySet[Any]":
    """Rows on one side of the cursor. The bound on the time alone is redundant, and what the planner prunes partitions by."""
    time, _, key = cursor.rpartition("_")
    moment = datetime.fromisoformat(time)
    if moment.tzinfo is None:
        raise ValueError(cursor)
    assert found.model._meta.pk is not None
    try:
        pk = found.model._meta.pk.to_python(key)
    except ValidationError as error:
        raise ValueError(cursor) from error
    exactly = Q(**{f"{field}__{side}": moment}) | Q(**{field: moment, f"pk__{side}": pk})
    return found.filter(exactly, **{f"{field}__{side}e": moment})


def _cursor(row: Any, field: str) -> str:
    return f"{getattr(row, field).isoformat()}_{row.pk}"


@contextmanager
def limited(seconds: float = LIMIT_S) -> Iterator[None]:
    """Inside, a statement may take that long. Raises TookTooLong."""
    try:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SELECT set_config('statement_timeout', %s, true)", [f"{seconds * 1000:.0f}"])
            yield
    except OperationalError as error:
        if isinstance(error.__cause__, psycopg.errors.QueryCanceled):
            raise TookTooLong from error
        raise


class KeysetChangeList(ChangeList):
    """Django's changelist, paged by key: the time in `keyset_field` of the admin class, and the id."""

    older_url = newer_url = ""

    def get_queryset(self, request: HttpRequest, exclude_parameters: list[str | None] | None = None) -> "QuerySet[Any]":
        for name in (OLDER, NEWER):  # a cursor is no lookup, and a filter's link starts at the newest page
            self.filter_params.pop(name, None)
        return super().get_queryset(request, exclude_parameters)

    def get_results(self, request: HttpRequest) -> None:
        page = self._read(request)
        self.result_list = page.rows
        self.result_count = self.full_result_count = len(page.rows)
        self.show_full_result_count = self.can_show_all = self.multi_page = False
        self.show_admin_actions = True
        self.paginator = self.model_admin.get_paginator(request, self.queryset, self.list_per_page)
        self.older_url = self.get_query_string({OLDER: page.older}) if page.older else ""
        self.newer_url = self.get_query_string({NEWER: page.newer}) if page.newer else ""

    def _read(self, request: HttpRequest) -> Page:
        cursors = {name: request.GET.get(name, "") for name in (OLDER, NEWER)}
        try:
            with limited():
                return read(self.queryset, self.model_admin.keyset_field, self.list_per_page, **cursors)  # type: ignore[attr-defined]
        except TookTooLong:
            messages.error(
                request, "That search takes too long. Narrow it down: choose a time, or search for one engine or user."
            )
            return Page([])
        except ValueError as error:
            raise IncorrectLookupParameters(error) from error
