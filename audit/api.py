"""A product's own audit rows over REST. The product is `request.auth`, whatever class settings name for it: here it is an id."""

from typing import Any

import django_filters
from django.db.models import QuerySet
from rest_framework.decorators import api_view
from rest_framework.exceptions import ValidationError
from rest_framework.pagination import CursorPagination
from rest_framework.request import Request
from rest_framework.response import Response

from audit.models import AuditRow
from audit.times import iso

MAX_LIMIT = 1000
_UUIDS = ("product_id", "engine_id", "operation_id")
FIELDS = (
    "id", "timestamp", "product_id", "user_id", "engine_id", "action", "actor", "metadata", "duration_ms", "product_slug", "from_status",
    "to_status", "engine_seq", "operation_id", "request_id",
)  # fmt: skip


class AuditFilter(django_filters.FilterSet):
    """Query parameters; `since` is inclusive and `until` exclusive, both ISO 8601."""

    action = django_filters.ChoiceFilter(choices=AuditRow._meta.get_field("action").choices)
    actor = django_filters.CharFilter()
    user_id = django_filters.CharFilter()
    engine_id = django_filters.UUIDFilter()
    since = django_filters.IsoDateTimeFilter(field_name="timestamp", lookup_expr="gte")
    until = django_filters.IsoDateTimeFilter(field_name="timestamp", lookup_expr="lt")

    class Meta:
        model = AuditRow
        fields = ("action", "actor", "user_id", "engine_id")


class AuditPages(CursorPagination):
    """Newest first; `limit` rows a page, 100 when not given."""

    ordering = ("-timestamp", "-id")
    page_size = 100
    page_size_query_param = "limit"

    def get_page_size(self, request: Request) -> int:
        return read_limit(request, default=self.page_size, most=MAX_LIMIT)


def read_limit(request: Request, *, default: int, most: int) -> int:
    """The `limit` parameter. Raises ValidationError unless it is a whole number from 1 to `most`."""
    text = request.query_params.get("limit", str(default))
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:10]) <= most:
        raise ValidationError({"limit": [f"Must be a whole number from 1 to {most}."]})
    return int(text)


@api_view(["GET"])
def rows(request: Request, user_id: str | None = None) -> Response:
    """GET /audit and GET /engines/{user_id}/audit: the product's own rows, filtered, newest first."""
    own = AuditRow.objects.filter(product_id=request.auth.pk)
    if user_id is not None:
        own = own.filter(user_id=user_id)
    known = {*AuditFilter.base_filters, "limit", AuditPages.cursor_query_param}
    if unknown := sorted(set(request.query_params) - known):
        raise ValidationError({name[:64]: [f"Unknown parameter. Known: {', '.join(sorted(known))}."] for name in unknown})
    filtered = AuditFilter(request.query_params, queryset=own)
    if not filtered.is_valid():
        raise ValidationError(filtered.errors)
    return _page(filtered.qs.values(*FIELDS), request)


def _page(found: "QuerySet[Any]", request: Request) -> Response:
    pages = AuditPages()
    page = pages.paginate_queryset(found, request)
    results = [_render(row) for row in page or []]
    return Response({"results": results, "next": pages.get_next_link(), "previous": pages.get_previous_link()})


def _render(row: dict[str, Any]) -> dict[str, Any]:
    row["timestamp"] = iso(row["timestamp"])
    for name in _UUIDS:
        row[name] = row[name] and str(row[name])
    return row
