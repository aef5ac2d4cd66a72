"""The OpenAPI description of this floor's endpoints: the audit log."""

from drf_spectacular.utils import OpenApiParameter

from audit import api
from audit.actions import Action
from common.endpoints import UUID, Endpoint, describe, page_limit

_FILTERS = (
    describe("action", "Exactly this action.", {"type": "string", "enum": [action.value for action in Action]}),
    describe("actor", "Exactly this actor.", {"type": "string", "minLength": 1}),
    describe("user_id", "Exactly this user.", {"type": "string", "minLength": 1}),
    describe("engine_id", "Exactly this engine.", UUID),
    describe("since", "From this time on.", {"type": "string", "format": "date-time"}),
    describe("until", "Before this time.", {"type": "string", "format": "date-time"}),
    describe("limit", "Rows of a page.", page_limit(default=api.PAGE, most=api.MAX_LIMIT)),
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
        answer=api.Rows, example=_PAGE, parameters=_FILTERS, tag="record",
    ),
    Endpoint(
        "GET", "/engines/{user_id}/audit", api.rows, "list_audit_of_user", "The rows of one user, also of engines long destroyed",
        answer=api.Rows, example=_PAGE, parameters=(_ANY_USER, *_FILTERS), tag="record",
    ),
)  # fmt: skip
