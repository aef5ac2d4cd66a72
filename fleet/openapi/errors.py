"""Errors in the OpenAPI document: their form, their status, and an example per code, made by `fleet.errors` like real answers."""

from collections.abc import Iterable
from uuid import UUID

from rest_framework import exceptions as drf

from common.answers import Json
from engines import errors as engines
from engines.backends.base import BackendError
from engines.models import Kind, Operation
from fleet import errors
from policy import errors as policy
from policy.auth import InsufficientScope, InvalidAdminKey, InvalidPlatformKey
from policy.models import Scope

_OPERATION = Operation(pk=UUID("103bc61c-3b64-4582-b9ef-e676666a87c2"), kind=Kind.PROVISION, state="running")

SAMPLES: tuple[Exception, ...] = (
    drf.ValidationError({"user_id": ["This field is required."]}),
    InvalidPlatformKey(),
    InvalidAdminKey(),
    policy.ImageDenied("images", "acme/agent:*", "nope:1"),
    InsufficientScope(frozenset({Scope.LIFECYCLE})),
    policy.ProductSuspended("suspended", "active", "suspended", "unpaid"),
    policy.DiskExceeded("disk_mb", 1024, 1600),
    engines.EngineNotFound("The product has no engine for this user."),
    policy.ProductNotFound("No product has the id f610ffa1-91e3-4c70-bb8d-ffab8ee91953."),
    drf.NotFound(),
    drf.MethodNotAllowed("PATCH"),
    engines.EngineAlreadyExists("The product has an engine for this user already."),
    engines.EngineAlreadyRunning("The engine is running already."),
    engines.EngineNotRunning("The engine is stopped; stop needs failed or running or sleeping."),
    engines.OperationInProgress(Kind.STOP, _OPERATION.pk),
    policy.ProductSlugExists("A product with the slug 'acme' exists or existed; choose another slug."),
    engines.ProductHasEngines(3),
    policy.AdminKeyExists("An admin key with the name 'ann' exists; revoke it, or choose another name."),
    drf.UnsupportedMediaType("text/plain"),
    policy.IdempotencyMismatch("This Idempotency-Key was used for another request; use a new key for a new request."),
    policy.QuotaExceeded("max_engines", 1000, 1000),
    policy.RateLimited("rate_limit_rpm", 600, 600, retry_after_s=12),
    RuntimeError("a bug of ours"),
    BackendError("no image acme/agent:2"),
    engines.CapacityExhausted("host_max_engines", 8, 9),
    engines.PortExhaustion("No port from 9001 to 19000 is free; destroy an engine or widen the range."),
    engines.NoPlaceToWait(_OPERATION),
    engines.Unfinished(_OPERATION),
)
"""An error per code."""

_REQUEST_ID = "37228bc0-3847-48b9-b685-ac2fdb3b1009"
CODES = sorted({errors.classify(sample)[1] for sample in SAMPLES})

ERROR: Json = {
    "type": "object",
    "description": "Decide by `code`; `message` is for people and may change.",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "code": {"type": "string", "enum": CODES},
                "message": {"type": "string", "minLength": 1},
                "details": {
                    "type": "object",
                    "description": "Further facts, for some errors. Invalid request: `fields`. Refusal by policy: `rule`,"
                    " `limit`, `value`. Refusal for lack of room: `rule`. Conflict with an open operation: `operation_id`."
                    " Failed or unfinished operation: `operation_id`, `cause`. Product that cannot be deleted: `engines`.",
                    "properties": {
                        "fields": {"description": "What is wrong with each invalid field or parameter, by its name."},
                        "rule": {"type": "string"},
                        "limit": {"type": ["integer", "number", "string"]},
                        "value": {"type": ["integer", "number", "string"]},
                        "operation_id": {"type": "string", "format": "uuid"},
                        "cause": {"type": "string"},
                        "engines": {"type": "integer", "description": "Number of living engines."},
                    },
                },
                "request_id": {"type": "string"},
            },
            "required": ["code", "message", "request_id"],
        }
    },
    "required": ["error"],
}


def by_status(codes: Iterable[str]) -> dict[int, list[str]]:
    """The codes, grouped by HTTP status. Raises KeyError for an unknown code."""
    grouped: dict[int, list[str]] = {}
    for code in sorted(set(codes)):
        grouped.setdefault(status_of(code), []).append(code)
    return dict(sorted(grouped.items()))


def status_of(code: str) -> int:
    """The HTTP status of the code. Raises KeyError for an unknown code."""
    return {known: status for status, known in map(errors.classify, SAMPLES)}[code]


def examples() -> dict[str, Json]:
    """An example answer per code, in the form of `components/examples`."""
    made: dict[str, Json] = {}
    for sample in SAMPLES:
        code = errors.classify(sample)[1]
        body = errors.body(sample)
        body["error"]["request_id"] = _REQUEST_ID
        made[code] = {"summary": body["error"]["message"], "value": body}
    return made


def answer(codes: list[str]) -> Json:
    """The description of an error answer with a code out of `codes`."""
    only = {"properties": {"error": {"properties": {"code": {"enum": codes}}}}}
    content = {
        "schema": {"allOf": [{"$ref": "#/components/schemas/Error"}, only]},
        "examples": {code: {"$ref": f"#/components/examples/{code}"} for code in codes},
    }
    return {"description": " or ".join(f"`{code}`" for code in codes), "content": {"application/json": content}}
