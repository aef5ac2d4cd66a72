"""How an endpoint is described in the OpenAPI document, and the description of this floor's.

Each floor describes its endpoints beside their views, in its `schema` module; `fleet.openapi` makes the document of them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from django.http import HttpResponseBase
from drf_spectacular.utils import OpenApiParameter
from rest_framework import serializers

from audit import api
from audit.actions import Action, Retention

Json = dict[str, Any]


@dataclass(frozen=True)
class Endpoint:
    """One method of one path, and what may come of it.

    What holds of all is not said here: errors that any request may meet, keys, request ids, `Idempotency-Key`.
    """

    method: str
    path: str  # as the document writes it: `/engines/{user_id}`
    view: Callable[..., HttpResponseBase]  # made by `api_view`
    name: str  # operationId: what a client would call its function
    summary: str
    answer: type[serializers.Serializer[Any]] | Json  # of a 200; its fields, or a JSON schema
    example: Json  # of that answer
    body: type[serializers.Serializer[Any]] | None = None  # of the request
    body_example: Json | None = None
    errors: tuple[str, ...] = ()  # codes of its own
    parameters: tuple[OpenApiParameter, ...] = ()  # of path, query and header
    headers: dict[int, tuple[str, ...]] = field(default_factory=dict)  # of answers by status: names among the HEADERS
    is_read: bool = False  # changes nothing, whatever its method: an `Idempotency-Key` would mean nothing
    is_waiting: bool = False  # may be answered with a 202, or with the failure of an operation
    tag: str = "engines"
    description: str = ""

    @property
    def key(self) -> tuple[str, str]:
        return self.method, self.path


def describe(name: str, description: str, schema: Json, *, required: bool = False, where: Any = OpenApiParameter.QUERY) -> Any:
    """A parameter of a request."""
    return OpenApiParameter(name, schema, where, required=required, description=description)


USER_ID: Json = {"type": "string", "minLength": 1, "maxLength": 255, "pattern": r"^(?!\.{1,2}$)"}
PAGE_LIMIT: Json = {"type": "integer", "minimum": 1, "maximum": api.MAX_LIMIT, "default": api.PAGE}
PATH_USER_ID = describe(
    "user_id",
    "The product's user: one segment, percent-encoded, 1 to 255 printable characters, not `.` or `..` alone.",
    {**USER_ID, "example": "alice"},
    required=True,
    where=OpenApiParameter.PATH,
)


class Row(serializers.Serializer[Any]):
    """A row of the audit log."""

    id = serializers.IntegerField(help_text="Number of the row.")
    timestamp = serializers.DateTimeField(help_text="When the action started; order an engine's rows by `engine_seq`, then `id`.")
    product_id = serializers.UUIDField(allow_null=True)
    user_id = serializers.CharField(allow_null=True)
    engine_id = serializers.UUIDField(allow_null=True)
    action = serializers.ChoiceField(choices=[action.value for action in Action], help_text="What happened.")
    actor = serializers.CharField(help_text="The product's slug, `admin`, `admin:<name>` or `system`.")
    metadata = serializers.DictField(help_text="More, by keys that depend on the action.")
    duration_ms = serializers.IntegerField(allow_null=True, help_text="How long it took, when that was measured.")
    product_slug = serializers.CharField(allow_null=True)
    from_status = serializers.CharField(allow_null=True, help_text="The change of state, when there was one.")
    to_status = serializers.CharField(allow_null=True)
    engine_seq = serializers.IntegerField(allow_null=True, help_text="Number of the engine's last move: one higher with each.")
    operation_id = serializers.UUIDField(allow_null=True)
    request_id = serializers.CharField(allow_null=True)
    txid = serializers.RegexField(
        "^[0-9]{1,20}$", help_text="The database's transaction that wrote the row; a string, since it has 64 bits."
    )
    retention = serializers.ChoiceField(choices=[kind.value for kind in Retention], help_text="How long the row is kept.")


class Rows(serializers.Serializer[Any]):
    """A page of the audit log, newest first."""

    results = Row(many=True)
    next = serializers.URLField(allow_null=True, help_text="The page of older rows.")
    previous = serializers.URLField(allow_null=True, help_text="The page of newer rows.")


_FILTERS = (
    describe("action", "Exactly this action.", {"type": "string", "enum": [action.value for action in Action]}),
    describe("actor", "Exactly this actor.", {"type": "string", "minLength": 1}),
    describe("user_id", "Exactly this user.", {"type": "string", "minLength": 1}),
    describe("engine_id", "Exactly this engine.", {"type": "string", "format": "uuid"}),
    describe("since", "From this time on.", {"type": "string", "format": "date-time"}),
    describe("until", "Before this time.", {"type": "string", "format": "date-time"}),
    describe("limit", "Rows of a page.", PAGE_LIMIT),
    describe(
        "cursor",
        "Of a page: follow `next` and `previous` instead of making one.",
        {"type": "string", "pattern": r"^(older|newer)\.[0-9]{1,18}\.[0-9]{1,18}$"},
    ),
)
_ANY_USER = describe(
    "user_id",
    "One segment, percent-encoded.",
    {"type": "string", "minLength": 1, "example": "alice"},
    required=True,
    where=OpenApiParameter.PATH,
)
_PAGE = {
    "results": [
        {
            "id": 15,
            "timestamp": "2026-11-24T03:39:03.764Z",
            "product_id": "f610ffa1-91e3-4c70-bb8d-ffab8ee91953",
            "user_id": "alice",
            "engine_id": "6df437d3-c7e8-4729-beab-981303a832e6",
            "action": "stop",
            "actor": "acme",
            "metadata": {"cause": "requested", "attempt": 1},
            "duration_ms": 56,
            "product_slug": "acme",
            "from_status": "running",
            "to_status": "stopped",
            "engine_seq": 3,
            "operation_id": "3ba31866-85cf-4c3f-a1ca-ef533ac6f0d1",
            "request_id": "37228bc0-3847-48b9-b685-ac2fdb3b1009",
            "txid": "1184",
            "retention": "standard",
        }
    ],
    "next": None,
    "previous": None,
}

ENDPOINTS = (
    Endpoint(
        "GET", "/audit", api.rows, "list_audit", "The product's own rows of the audit log, newest first",
        answer=Rows, example=_PAGE, parameters=_FILTERS, tag="record",
    ),
    Endpoint(
        "GET", "/engines/{user_id}/audit", api.rows, "list_audit_of_user", "The rows of one user, also of engines long destroyed",
        answer=Rows, example=_PAGE, parameters=(_ANY_USER, *_FILTERS), tag="record",
    ),
)  # fmt: skip
