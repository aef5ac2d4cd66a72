"""A product's own audit rows over REST. The product is `request.auth`, whatever class settings name for it: here it is an id."""

import json
from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import urlencode

import django_filters
from django.db.models import QuerySet, TextField
from django.db.models.expressions import RawSQL
from django.http import HttpResponse
from django_filters.fields import IsoDateTimeField
from pydantic import Field
from rest_framework.decorators import api_view
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from typing_extensions import TypedDict

from audit.actions import Action, Retention
from audit.models import AuditRow
from common import keyset
from common.answers import NonEmpty, Time, Url, Uuid, choice
from common.keyset import Page
from common.parameters import read_whole

CURSOR, LIMIT = "cursor", "limit"
OLDER, NEWER = "older", "newer"  # what a cursor begins with
PAGE, MAX_LIMIT = 100, 1000


class Row(TypedDict):
    """A row of the audit log."""

    id: Annotated[int, Field(description="Number of the row.")]
    timestamp: Annotated[Time, Field(description="When the action started; order an engine's rows by `engine_seq`, then `id`.")]
    product_id: Uuid | None
    user_id: NonEmpty | None
    engine_id: Uuid | None
    action: Annotated[str, choice(Action), Field(description="What happened.")]
    actor: Annotated[NonEmpty, Field(description="The product's slug, `admin`, `admin:<name>` or `system`.")]
    metadata: Annotated[dict[str, Any], Field(description="More, by keys that depend on the action.")]
    duration_ms: Annotated[int | None, Field(description="How long it took, when that was measured.")]
    product_slug: NonEmpty | None
    from_status: Annotated[NonEmpty | None, Field(description="The change of state, when there was one.")]
    to_status: NonEmpty | None
    engine_seq: Annotated[int | None, Field(description="Number of the engine's last move: one higher with each.")]
    operation_id: Uuid | None
    request_id: NonEmpty | None
    txid: Annotated[
        NonEmpty, Field(pattern="^[0-9]{1,20}$", description="The database's transaction that wrote the row, 64 bits: a string.")
    ]
    retention: Annotated[str, choice(Retention), Field(description="How long the row is kept.")]


class Rows(TypedDict):
    """A page of the audit log, newest first."""

    results: list[Row]
    next: Annotated[Url | None, Field(description="The page of older rows.")]
    previous: Annotated[Url | None, Field(description="The page of newer rows.")]


FIELDS = tuple(Row.__annotations__)
_MILLISECONDS = """to_char(audit_log.timestamp AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS timestamp"""
_SHOWN = ", ".join(_MILLISECONDS if name == "timestamp" else f"audit_log.{name}" for name in FIELDS)
# The row as JSON, by PostgreSQL: models of a hundred rows, and JSON of those, take longer than all the rest of the request.
_ROW = RawSQL(f"(SELECT row_to_json(shown) FROM (SELECT {_SHOWN}) shown)::text", (), output_field=TextField())  # noqa: S611 (ours)


class _MomentField(IsoDateTimeField):
    """A time as UTC: PostgreSQL does not take every offset that ISO 8601 does."""

    def to_python(self, value: Any) -> datetime | None:
        moment: datetime | None = super().to_python(value)
        if moment is None:
            return None
        try:
            return moment.astimezone(UTC)
        except OverflowError:  # hours beyond the first or the last year there is
            return moment.replace(tzinfo=UTC)


class _MomentFilter(django_filters.IsoDateTimeFilter):
    field_class = _MomentField


class AuditFilter(django_filters.FilterSet):
    """Query parameters; `since` is inclusive and `until` exclusive, both ISO 8601."""

    action = django_filters.ChoiceFilter(choices=AuditRow._meta.get_field("action").choices)
    actor = django_filters.CharFilter(strip=False)
    user_id = django_filters.CharFilter(strip=False)
    engine_id = django_filters.UUIDFilter()
    since = _MomentFilter(field_name="timestamp", lookup_expr="gte")
    until = _MomentFilter(field_name="timestamp", lookup_expr="lt")

    class Meta:
        model = AuditRow
        fields = ("action", "actor", "user_id", "engine_id")


KNOWN = (*AuditFilter.base_filters, LIMIT, CURSOR)


@api_view(["GET"])
def rows(request: Request, user_id: str | None = None) -> HttpResponse:
    """GET /audit and GET /engines/{user_id}/audit: the product's own rows, filtered, newest first."""
    _check_parameters(request, user_id)
    own = AuditRow.objects.filter(product_id=request.auth.pk)
    if user_id is not None:
        own = own.filter(user_id=user_id)
    size = read_whole(request, LIMIT, default=PAGE, least=1, most=MAX_LIMIT)
    page = _read_page(request, _filter(request, own), size)
    links = json.dumps({"next": _link(request, OLDER, page.older), "previous": _link(request, NEWER, page.newer)})
    return HttpResponse(f'{{"results":[{",".join(page.rows)}],{links[1:]}', content_type="application/json")


def _read_page(request: Request, found: "QuerySet[AuditRow]", size: int) -> Page:
    """The page that the parameter `cursor` names: `older.` or `newer.` and a position. Raises ValidationError."""
    side, _, position = request.query_params.get(CURSOR, "").partition(".")
    try:
        if side not in ("", OLDER, NEWER) or bool(side) != bool(position):
            raise ValueError("a cursor begins with `older.` or `newer.`")
        return keyset.read(found, ("timestamp", "id"), size, shown=_ROW, **({side: position} if side else {}))
    except ValueError as error:
        raise ValidationError({CURSOR: ["Must be taken from a link of an earlier answer."]}) from error


def _filter(request: Request, own: "QuerySet[AuditRow]") -> "QuerySet[AuditRow]":
    """Those of the rows that the parameters ask for. Raises ValidationError."""
    if AuditFilter.base_filters.keys().isdisjoint(request.query_params):
        return own
    filtered = AuditFilter(request.query_params, queryset=own)
    if not filtered.is_valid():
        raise ValidationError(filtered.errors)
    found: QuerySet[AuditRow] = filtered.qs
    return found


def _check_parameters(request: Request, user_id: str | None) -> None:
    """Raise ValidationError for a parameter that is unknown or empty: to ignore it would answer another question."""
    given = request.query_params
    wrong = {name[:64]: [f"Unknown parameter. Known: {', '.join(KNOWN)}."] for name in sorted(set(given) - set(KNOWN))}
    wrong |= {name: ["Must not be empty."] for name in KNOWN if given.get(name) == ""}
    if user_id is not None and ("\0" in user_id or user_id in (".", "..")):
        wrong["user_id"] = ["Null characters are not allowed, nor is . or .. alone."]
    if wrong:
        raise ValidationError(wrong)


def _link(request: Request, side: str, position: str) -> str | None:
    """The request's own address with another cursor. Its path stays as it was sent: a user's name may hold an encoded slash."""
    if not position:
        return None
    query = [(name, value) for name, values in request.query_params.lists() for value in values if name != CURSOR]
    query.append((CURSOR, f"{side}.{position}"))
    return str(request.build_absolute_uri(f"{request.path_info}?{urlencode(query)}"))
