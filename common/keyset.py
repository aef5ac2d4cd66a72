"""Keyset pagination: a list is paged by the values of its sort key, (a time or a number, the id), newest first.

Nothing is counted, and an old page costs as much as the first page. A *position* is the sort key of a row as text: `older` and
`newer` of a page are the positions from which the neighbouring pages continue.

    page = keyset.read(AuditRow.objects.all(), ("timestamp", "id"), 50)
    next_page = keyset.read(AuditRow.objects.all(), ("timestamp", "id"), 50, older=page.older)

Source of the method: https://use-the-index-luke.com/no-offset
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from django.db.models import BooleanField, DateTimeField, Field, Func, Model, QuerySet, UUIDField, Value
from django.db.models.expressions import BaseExpression
from django.db.models.lookups import GreaterThan, LessThan

Key = tuple[str, str]
"""The names of two fields: the field that orders the list, and the id, which orders rows with equal values."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DIGITS = re.compile(r"\d{1,18}", re.ASCII)


@dataclass(frozen=True)
class Page:
    """Rows, newest first, and the positions of the neighbouring pages; an empty position means: no further page."""

    rows: list[Any]
    older: str = ""
    newer: str = ""


def read(
    found: "QuerySet[Any]", key: Key, size: int, *, older: str = "", newer: str = "", shown: BaseExpression | None = None
) -> Page:
    """At most `size` rows: the newest, or the rows next to a position (`older` counts if both are given).

    A row is a model, or the value of the expression `shown`. Raises ValueError for an invalid position.

    By following positions in any direction, a reader gets every lasting row exactly once: the id orders rows with equal times.
    """
    if newer and not older:
        return _read_newer(found, key, size, newer, shown)
    before = _beyond(found, key, older, LessThan) if older else found
    rows = _fetch(before.order_by(f"-{key[0]}", f"-{key[1]}")[: size + 1], key, shown)
    more, rows = len(rows) > size, rows[:size]
    return Page([row for row, _ in rows], rows[-1][1] if more else "", rows[0][1] if older and rows else "")


def _read_newer(found: "QuerySet[Any]", key: Key, size: int, newer: str, shown: BaseExpression | None) -> Page:
    after = _beyond(found, key, newer, GreaterThan)
    rows = _fetch(after.order_by(*key)[: size + 1], key, shown)
    more, rows = len(rows) > size, rows[:size][::-1]
    return Page([row for row, _ in rows], rows[-1][1] if rows else "", rows[0][1] if more else "")


def _fetch(found: "QuerySet[Any]", key: Key, shown: BaseExpression | None) -> list[tuple[Any, str]]:
    """Pairs of a row and its position."""
    if shown is None:
        return [(row, _position([getattr(row, name) for name in key])) for row in found]
    return [(row, _position(values)) for row, *values in found.annotate(shown=shown).values_list("shown", *key)]


class _Row(Func):
    """SQL's row constructor: PostgreSQL compares rows by their first values, and by their second if the first are equal."""

    template = "(%(expressions)s)"
    output_field = BooleanField()  # unused, but Django requires an output field


def _beyond(found: "QuerySet[Any]", key: Key, position: str, side: "type[LessThan] | type[GreaterThan]") -> "QuerySet[Any]":
    """The rows on one side of the position.

    The bound on the first value alone is redundant, but lets PostgreSQL skip partitions.
    """
    values = _parse(found.model, key, position)
    bound = "lte" if side is LessThan else "gte"
    return found.filter(side(_Row(*key), _Row(*map(Value, values))), **{f"{key[0]}__{bound}": values[0]})


def _position(values: Sequence[Any]) -> str:
    return ".".join(map(_encode, values))


def _encode(value: Any) -> str:
    """A time as microseconds since 1970, an id as digits or hex digits."""
    if isinstance(value, datetime):
        return str((value - _EPOCH) // timedelta(microseconds=1))
    return value.hex if isinstance(value, UUID) else str(value)


def _parse(model: type[Model], key: Key, position: str) -> list[Any]:
    """The values of a position. Raises ValueError."""
    parts = position.split(".")
    if len(parts) != len(key):
        raise ValueError(f"a position has {len(key)} parts, not {len(parts)}")
    return [_decode(model._meta.get_field(name), part) for name, part in zip(key, parts, strict=True)]


def _decode(field: "Field[Any, Any] | Any", text: str) -> Any:
    if isinstance(field, UUIDField):
        return UUID(text)
    if not _DIGITS.fullmatch(text):
        raise ValueError("a part of a position is not a whole number")
    if not isinstance(field, DateTimeField):
        return int(text)
    try:
        return _EPOCH + timedelta(microseconds=int(text))
    except OverflowError as error:
        raise ValueError("a position is later than the year 9999") from error
