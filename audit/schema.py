"""The OpenAPI description of the endpoints in `audit.api`."""

from drf_spectacular.utils import OpenApiParameter

from audit import api
from audit.actions import Action
from common import cursors
from common.endpoints import UUID, Endpoint, describe, page_limit

_FILTERS = (
    describe("action", "Only rows with this action.", {"type": "string", "enum": [action.value for action in Action]}),
    describe("actor", "Only rows shown with this actor.", {"type": "string", "minLength": 1}),
    describe("user_id", "Only rows of this user, and counts of refusals that name the user.", {"type": "string", "minLength": 1}),
    describe("engine_id", "Only rows of this engine.", UUID),
    describe("since", "Only rows from this time on.", {"type": "string", "format": "date-time"}),
    describe("until", "Only rows before this time.", {"type": "string", "format": "date-time"}),
    describe("limit", "Number of rows per page.", page_limit(default=api.PAGE, most=api.MAX_LIMIT)),
    describe(
        "cursor",
        "Position of a page. Follow `next` and `previous` instead of making a cursor yourself.",
        {"type": "string", "pattern": cursors.PATTERN},
    ),
)
_ANY_USER = describe(
    "user_id",
    "The product's id of the user, percent-encoded as one path segment.",
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
            "retention": "standard",
        }
    ],
    "next": None,
    "previous": None,
}

ENDPOINTS = (
    Endpoint(
        "GET", "/audit", api.rows, "list_audit", "List the product's own rows of the audit log, newest first",
        answer=api.Rows, example=_PAGE, parameters=_FILTERS, tag="record",
    ),
    Endpoint(
        "GET", "/engines/{user_id}/audit", api.rows, "list_audit_of_user", "List a user's audit rows, also of destroyed engines",
        answer=api.Rows, example=_PAGE, parameters=(_ANY_USER, *_FILTERS), tag="record",
    ),
)  # fmt: skip
