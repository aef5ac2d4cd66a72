"""The audit log over REST: a product's own rows, or every row for the operator. Only the id of the product is used here.

A product sees its own rows, and in them nothing about others. The operator sees the rows as they are, here and in the admin.

- Every actor but the product itself and `system` is shown as `admin`: products do not learn who works for the operator.
- Of the metadata, the keys that the catalogue shows to products. A key is hidden until its entry says otherwise.
- The call behind a row (its ids, its key, who called), only for the product's own calls.
- Cursors are opaque, and the columns of `Row` are all that is shown.
"""

import json
from collections.abc import Collection, Hashable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, NotRequired
from urllib.parse import urlencode

import django_filters
from django.db.models import F, Q, QuerySet, TextField
from django.db.models.expressions import RawSQL
from django.http import HttpResponse
from django_filters.fields import IsoDateTimeField
from pydantic import Field
from rest_framework.decorators import api_view
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from typing_extensions import TypedDict

from audit import actors, feed, search
from audit.actions import Action, Retention
from audit.catalogue import CATALOGUE, CLAMPED
from audit.models import AuditRow
from common import cursors, keyset, statements
from common.answers import NonEmpty, Time, Url, Uuid, choice
from common.keyset import Page
from common.parameters import read_whole
from common.statements import TookTooLong

CURSOR, LIMIT, AFTER, WAIT = "cursor", "limit", "after", "wait"
OLDER, NEWER = "older", "newer"  # what a cursor hides: one of these, a dot, and a position
COMMITTED = "committed"  # in place of a side: the position is one of `audit.feed`
PAGE, MAX_LIMIT = 100, 1000


_OWN_ONLY = "A product sees it in the rows of its own calls only."
_TXID = Field(
    pattern="^[0-9]{1,20}$",
    description="Only with an admin key: id of the transaction that wrote the row, 64 bits as a string.",
)
_STRETCH = Field(
    ge=0,
    le=32767,
    description="Only with an admin key: number of the stretch in which ids of transactions grow. A restore begins a stretch.",
)


class Row(TypedDict):
    """A row of the audit log."""

    id: Annotated[int, Field(description="Number of the row.")]
    timestamp: Annotated[Time, Field(description="When the action started. Order an engine's rows by `engine_seq`, then `id`.")]
    product_id: Uuid | None
    user_id: NonEmpty | None
    engine_id: Uuid | None
    action: Annotated[str, choice(Action), Field(description="Name of the action.")]
    actor: Annotated[NonEmpty, Field(description="The product's slug, `system`, or `admin` for the operator and its staff.")]
    metadata: Annotated[dict[str, Any], Field(description="Further facts; the keys depend on the action.")]
    duration_ms: Annotated[int | None, Field(description="Duration of the action; null if it was not measured.")]
    product_slug: NonEmpty | None
    from_status: Annotated[NonEmpty | None, Field(description="The engine's state before its change; null if none.")]
    to_status: Annotated[NonEmpty | None, Field(description="The engine's state after its change; null if none.")]
    engine_seq: Annotated[int | None, Field(description="Number of the engine's last move; each move adds 1.")]
    operation_id: Uuid | None
    request_id: Annotated[NonEmpty | None, Field(description=f"The `X-Request-ID` of the call behind the row. {_OWN_ONLY}")]
    call_id: Annotated[Uuid | None, Field(description=f"The `X-Call-ID` of the call: no two calls have the same. {_OWN_ONLY}")]
    key_id: Annotated[Uuid | None, Field(description=f"Id of the key with which the call was made. {_OWN_ONLY}")]
    client_ip: Annotated[NonEmpty | None, Field(description=f"The address that the call came from. {_OWN_ONLY}")]
    user_agent: Annotated[NonEmpty | None, Field(description=f"The call's `User-Agent`. {_OWN_ONLY}")]
    on_behalf_of: Annotated[NonEmpty | None, Field(description=f"The call's `X-On-Behalf-Of`. {_OWN_ONLY}")]
    written_at: Annotated[Time | None, Field(description="When the row was written, by the database's clock.")]
    txid: NotRequired[Annotated[NonEmpty, _TXID]]
    stretch: NotRequired[Annotated[int, _STRETCH]]
    retention: Annotated[str, choice(Retention), Field(description="Name of the period for which the row is kept.")]


class Rows(TypedDict):
    """A page of the audit log: newest first or, with `after`, in the order of commits."""

    results: list[Row]
    next: Annotated[
        Url | None,
        Field(description="Address of the page of older rows; null if there is none. With `after`: where to go on, never null."),
    ]
    previous: Annotated[
        Url | None, Field(description="Address of the page of newer rows; null if there is none, and with `after`.")
    ]


OF_OPERATOR = ("txid", "stretch")
"""Columns that only the operator sees."""
FIELDS = tuple(name for name in Row.__annotations__ if name not in OF_OPERATOR)
"""Columns that a product sees."""
OF_CALL = ("request_id", "call_id", "key_id", "client_ip", "user_agent", "on_behalf_of")
"""Columns of the call behind a row. A product sees them in the rows of its own calls only, and not of staff or the system."""


def _time(name: str) -> str:
    """SQL: a time with milliseconds."""
    return f"""to_char(audit_log.{name} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')"""


_SHOWN_KEYS = json.dumps({action: [*sorted(entry.shown), CLAMPED] for action, entry in CATALOGUE.items()})
_TO_ALL = {name: _time(name) for name in ("timestamp", "written_at")}
_TO_PRODUCTS = {  # SQL of the columns that products see in another form
    **_TO_ALL,
    "actor": f"CASE WHEN actor IN (product_slug, '{actors.SYSTEM}') THEN actor ELSE '{actors.ADMIN}' END",
    **{name: f"CASE WHEN actor = product_slug THEN audit_log.{name} END" for name in OF_CALL},
    # Without every key that the action's entry does not show, which are all keys of an action outside the catalogue.
    "metadata": "CASE WHEN jsonb_typeof(metadata) = 'object' THEN metadata - (SELECT coalesce(array_agg(key), '{}')"
    f" FROM jsonb_object_keys(metadata) key WHERE NOT coalesce(('{_SHOWN_KEYS}'::jsonb -> action) ? key, false)) ELSE '{{}}' END",
}


def _row(names: Iterable[str], forms: Mapping[str, str]) -> RawSQL:
    """A row as JSON, made by PostgreSQL: models and JSON of a hundred rows in Python take longer than the rest of the request."""
    shown = ", ".join(f"{forms.get(name, f'audit_log.{name}')} AS {name}" for name in names)
    return RawSQL(f"(SELECT row_to_json(shown) FROM (SELECT {shown}) shown)::text", (), output_field=TextField())  # noqa: S611 (our SQL)


_FOR_PRODUCT, _FOR_OPERATOR = _row(FIELDS, _TO_PRODUCTS), _row(Row.__annotations__, _TO_ALL)


class _MomentField(IsoDateTimeField):
    """A time in UTC: PostgreSQL does not accept every offset of ISO 8601."""

    def to_python(self, value: Any) -> datetime | None:
        moment: datetime | None = super().to_python(value)
        if moment is None:
            return None
        try:
            return moment.astimezone(UTC)
        except OverflowError:  # in UTC the time is before year 1 or after year 9999
            return moment.replace(tzinfo=UTC)


class _MomentFilter(django_filters.IsoDateTimeFilter):
    field_class = _MomentField


class AuditFilter(django_filters.FilterSet):
    """Query parameters; `since` is inclusive and `until` exclusive, both ISO 8601."""

    action = django_filters.ChoiceFilter(choices=AuditRow._meta.get_field("action").choices)
    actor = django_filters.CharFilter(strip=False, method="filter_actor")
    user_id = django_filters.CharFilter(strip=False, method="of_user")
    engine_id = django_filters.UUIDFilter()
    since = _MomentFilter(field_name="timestamp", lookup_expr="gte")
    until = _MomentFilter(field_name="timestamp", lookup_expr="lt")

    class Meta:
        model = AuditRow
        fields = ("action", "actor", "user_id", "engine_id")

    def filter_actor(self, found: "QuerySet[AuditRow]", _name: str, actor: str) -> "QuerySet[AuditRow]":
        """The rows whose actor is *shown* as `actor`: a filter by the stored text would tell who works for the operator."""
        is_named = Q(actor=F("product_slug")) | Q(actor=actors.SYSTEM)
        return found.exclude(is_named) if actor == actors.ADMIN else found.filter(is_named, actor=actor)

    def of_user(self, found: "QuerySet[AuditRow]", name: str, value: str) -> "QuerySet[AuditRow]":
        return found.filter(search.of_user(value, found))


class OperatorFilter(AuditFilter):
    """The operator's further parameters. Only `product_id` and `request_id` have an index: the others need a period, too."""

    actor = django_filters.CharFilter(strip=False)  # as it is stored
    product_id = django_filters.UUIDFilter()
    request_id = django_filters.CharFilter(strip=False)
    call_id = django_filters.UUIDFilter()
    key_id = django_filters.UUIDFilter()


KNOWN = (*OperatorFilter.base_filters, LIMIT, CURSOR, AFTER, WAIT)


@api_view(["GET"])
def rows(request: Request, user_id: str) -> HttpResponse:
    """GET /engines/{user_id}/audit: the rows of a product's user, filtered, newest first or in the order of commits."""
    return own_rows(request, user_id)


def own_rows(request: Request, user_id: str | None = None) -> HttpResponse:
    """The calling product's rows, filtered, newest first or in the order of commits. Raises ValidationError."""
    own = AuditRow.objects.filter(product_id=request.auth.pk)
    if user_id is not None:
        _check_user_id(user_id)
    if AFTER in request.query_params:
        return _answer_feed(request, own, AuditFilter, _FOR_PRODUCT, request.auth.pk, user_id)
    if user_id is not None:
        own = own.filter(search.of_user(user_id, own))
    return _answer(request, own, AuditFilter, _FOR_PRODUCT)


def all_rows(request: Request) -> HttpResponse:
    """Every row, for the operator, filtered, newest first or in the order of commits.

    Raises ValidationError, also for a search that takes too long.
    """
    if AFTER in request.query_params:
        return _answer_feed(request, AuditRow.objects.all(), OperatorFilter, _FOR_OPERATOR, actors.ADMIN)
    try:
        with statements.limited():
            return _answer(request, AuditRow.objects.all(), OperatorFilter, _FOR_OPERATOR)
    except TookTooLong as error:
        raise ValidationError({"since": ["The search takes too long. Choose a period with since and until."]}) from error


def _answer(request: Request, found: "QuerySet[AuditRow]", filters: type[AuditFilter], shown: RawSQL) -> HttpResponse:
    """A page of the rows that match the request's parameters. Raises ValidationError."""
    _check_parameters(request, (*filters.base_filters, LIMIT, CURSOR))
    size = read_whole(request, LIMIT, default=PAGE, least=1, most=MAX_LIMIT)
    page = _read_page(request, _filter(request, found, filters), size, shown)
    links = json.dumps({"next": _link(request, OLDER, page.older), "previous": _link(request, NEWER, page.newer)})
    return HttpResponse(f'{{"results":[{",".join(page.rows)}],{links[1:]}', content_type="application/json")


def _answer_feed(
    request: Request,
    found: "QuerySet[AuditRow]",
    filters: type[AuditFilter],
    shown: RawSQL,
    owner: Hashable,
    user_id: str | None = None,
) -> HttpResponse:
    """A page in the order of commits, of rows beyond the parameter `after`; without such a row, the answer waits `wait` seconds.

    `owner` is whoever takes a place to wait. Raises ValidationError.
    """
    _check_parameters(request, (*filters.base_filters, LIMIT, AFTER, WAIT))
    size = read_whole(request, LIMIT, default=PAGE, least=1, most=MAX_LIMIT)
    wait_s = read_whole(request, WAIT, default=0, least=0, most=feed.LONGEST_WAIT_S)
    matching = _filter(request, found, filters)
    if user_id is not None:
        matching = matching.filter(search.of_user(user_id, found))
    page = feed.wait(
        lambda position: feed.read(found, position, size, shown=shown, matching=None if matching is found else matching),
        _read_position(request),
        wait_s,
        owner,
    )
    link = json.dumps(_address(request, AFTER, f"{COMMITTED}.{page.reached}"))
    return HttpResponse(f'{{"results":[{",".join(page.rows)}],"next":{link},"previous":null}}', content_type="application/json")


def _read_position(request: Request) -> str:
    """The position in the parameter `after`. Raises ValidationError."""
    after = request.query_params[AFTER]
    if after in (feed.START, feed.NOW):
        return str(after)
    try:
        kind, _, position = cursors.reveal(after).partition(".")
    except ValueError:
        kind, position = "", ""
    if kind != COMMITTED:
        known = f"{feed.START}, {feed.NOW}, or the value in `next` of an earlier answer with after"
        raise ValidationError({AFTER: [f"Must be {known}."]})
    return position


def _read_page(request: Request, found: "QuerySet[AuditRow]", size: int, shown: RawSQL) -> Page:
    """The page at the parameter `cursor`, or the newest. Raises ValidationError."""
    cursor = request.query_params.get(CURSOR, "")
    try:
        side, _, position = cursors.reveal(cursor).partition(".") if cursor else ("", "", "")
        if cursor and side not in (OLDER, NEWER):
            raise ValueError("a cursor of another list")
        return keyset.read(found, ("timestamp", "id"), size, shown=shown, **({side: position} if cursor else {}))
    except ValueError as error:
        raise ValidationError({CURSOR: ["Must be a cursor from `next` or `previous` of an earlier answer."]}) from error


def _filter(request: Request, found: "QuerySet[AuditRow]", filters: type[AuditFilter]) -> "QuerySet[AuditRow]":
    """The rows matching the filters in the parameters. Raises ValidationError."""
    if filters.base_filters.keys().isdisjoint(request.query_params):
        return found
    filtered = filters(request.query_params, queryset=found)
    if not filtered.is_valid():
        raise ValidationError(filtered.errors)
    matching: QuerySet[AuditRow] = filtered.qs
    return matching


def _check_parameters(request: Request, known: Collection[str]) -> None:
    """Raise ValidationError for an unknown or empty parameter: without the intended filter the answer would be wrong."""
    given = request.query_params
    wrong = {name[:64]: [f"Unknown parameter. Known: {', '.join(known)}."] for name in sorted(set(given) - set(known))}
    wrong |= {name: ["Must not be empty."] for name in known if given.get(name) == ""}
    if wrong:
        raise ValidationError(wrong)


def _check_user_id(user_id: str) -> None:
    if "\0" in user_id or user_id in (".", ".."):
        raise ValidationError({"user_id": ["Null characters are not allowed, nor is . or .. alone."]})


def _link(request: Request, side: str, position: str) -> str | None:
    """The address of the page on a side of the position; None where there is no position."""
    return _address(request, CURSOR, f"{side}.{position}") if position else None


def _address(request: Request, name: str, hidden: str) -> str:
    """The request's address with a new cursor; the path stays percent-encoded, since a user id may contain an encoded slash."""
    query = [(key, value) for key, values in request.query_params.lists() for value in values if key != name]
    query.append((name, cursors.hide(hidden)))
    return str(request.build_absolute_uri(f"{request.path_info}?{urlencode(query)}"))
