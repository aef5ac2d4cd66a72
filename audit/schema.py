"""The OpenAPI description of the endpoints in `audit.api`; `fleet.schema` has `GET /audit`, which takes either key."""

from drf_spectacular.utils import OpenApiParameter

from audit import api, feed
from audit.actions import Action
from common import cursors
from common.endpoints import UUID, Endpoint, describe, page_limit

FILTERS = (
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
    describe(
        "after",
        "Instead of `cursor`: rows in the order of commits, each once, from `start`, from `now`, or from a cursor in `next`.",
        {"type": "string", "pattern": f"^({feed.START}|{feed.NOW})$|{cursors.PATTERN}"},
    ),
    describe(
        "wait",
        "With `after` only: seconds to wait for a row if there is none.",
        {"type": "integer", "minimum": 0, "maximum": feed.LONGEST_WAIT_S, "default": 0},
    ),
)
_ANY_USER = describe(
    "user_id",
    "The product's id of the user, percent-encoded as one path segment.",
    {"type": "string", "minLength": 1, "example": "alice"},
    required=True,
    where=OpenApiParameter.PATH,
)
PAGE = {
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
            "call_id": "c2b1d0c8-6c0e-4f3b-9a55-0d0f5f0b9a1e",
            "key_id": "0f7c9a52-1b5e-4c7c-8f0e-6b2f4d1f7a11",
            "client_ip": "203.0.113.7",
            "user_agent": "acme-backend/3.1",
            "on_behalf_of": "ada@acme.example",
            "written_at": "2026-11-24T03:39:03.820Z",
            "retention": "standard",
        }
    ],
    "next": None,
    "previous": None,
}

ENDPOINTS = (
    Endpoint(
        "GET", "/engines/{user_id}/audit", api.rows, "list_audit_of_user", "List a user's audit rows, also of destroyed engines",
        answer=api.Rows, example=PAGE, parameters=(_ANY_USER, *FILTERS), tag="record",
    ),
)  # fmt: skip
