"""The table from exceptions to HTTP status and error code, and the handlers of all errors.

Every error body has the form `{"error": {"code", "message", "details"?, "request_id"}}`.
"""

import random
import sys
from collections.abc import Mapping
from typing import Any

import structlog
from cryptography.fernet import InvalidToken
from django.core.exceptions import BadRequest, DisallowedHost, PermissionDenied
from django.db import InterfaceError, OperationalError
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.views import csrf, defaults
from psycopg_pool import PoolTimeout
from rest_framework import exceptions as drf
from rest_framework.response import Response

from common import context
from engines import errors as engines
from engines.backends.base import BackendError
from engines.models import Kind
from fleet import denials
from fleet.staff import brakes
from fleet.staff.brakes import Paused
from policy import errors as policy
from policy.auth import InsufficientScope, InvalidAdminKey, InvalidPlatformKey

log = structlog.get_logger(__name__)

TABLE: tuple[tuple[type[Exception], int, str], ...] = (
    (policy.InvalidPolicy, 400, "INVALID_REQUEST"),
    (policy.InvalidProduct, 400, "INVALID_REQUEST"),
    (policy.InvalidAdminKeyName, 400, "INVALID_REQUEST"),
    (policy.InvalidEngineEnv, 400, "INVALID_REQUEST"),
    (engines.InvalidUserId, 400, "INVALID_REQUEST"),
    (engines.ImageUnknown, 400, "INVALID_REQUEST"),
    (InvalidPlatformKey, 401, "INVALID_PLATFORM_KEY"),
    (InvalidAdminKey, 401, "INVALID_ADMIN_KEY"),
    (InsufficientScope, 403, "INSUFFICIENT_SCOPE"),
    (policy.InvalidIdempotencyKey, 400, "INVALID_REQUEST"),
    (policy.IdempotencyMismatch, 422, "IDEMPOTENCY_MISMATCH"),
    (policy.ProductNotFound, 404, "PRODUCT_NOT_FOUND"),
    (policy.PlatformKeyNotFound, 404, "NOT_FOUND"),
    (policy.AdminKeyNotFound, 404, "NOT_FOUND"),
    (policy.OverrideNotFound, 404, "NOT_FOUND"),
    (policy.ProductSlugExists, 409, "PRODUCT_SLUG_EXISTS"),
    (engines.ProductHasEngines, 409, "PRODUCT_HAS_ENGINES"),
    (policy.AdminKeyExists, 409, "ADMIN_KEY_EXISTS"),
    (policy.QuotaExceeded, 429, "QUOTA_EXCEEDED"),
    (policy.ImageDenied, 403, "POLICY_DENIED"),
    (policy.ProductSuspended, 403, "PRODUCT_SUSPENDED"),
    (policy.DiskExceeded, 403, "DISK_EXCEEDED"),
    (policy.RateLimited, 429, "RATE_LIMITED"),
    (policy.ShareTaken, 503, "UNAVAILABLE"),
    (engines.EngineNotFound, 404, "ENGINE_NOT_FOUND"),
    (engines.OperationNotFound, 404, "NOT_FOUND"),
    (engines.EngineAlreadyExists, 409, "ENGINE_ALREADY_EXISTS"),
    (engines.EngineAlreadyRunning, 409, "ENGINE_ALREADY_RUNNING"),
    (engines.EngineNotRunning, 409, "ENGINE_NOT_RUNNING"),
    (engines.OperationInProgress, 409, "OPERATION_IN_PROGRESS"),
    (engines.PortExhaustion, 503, "PORT_EXHAUSTION"),
    (engines.CapacityExhausted, 503, "CAPACITY_EXHAUSTED"),
    (engines.Crowded, 503, "UNAVAILABLE"),
    (engines.LogsUnavailable, 503, "UNAVAILABLE"),
    (engines.Unfinished, 503, "UNAVAILABLE"),
    (engines.Unsuccessful, 502, "BACKEND_ERROR"),
    (BackendError, 502, "BACKEND_ERROR"),
    (PoolTimeout, 503, "UNAVAILABLE"),
    (OperationalError, 503, "UNAVAILABLE"),
    (InterfaceError, 503, "UNAVAILABLE"),
    (Paused, 503, "UNAVAILABLE"),  # where no page says so itself
    (InvalidToken, 500, "INTERNAL_ERROR"),
    (drf.ParseError, 400, "INVALID_REQUEST"),
    (drf.ValidationError, 400, "INVALID_REQUEST"),
    (drf.MethodNotAllowed, 405, "METHOD_NOT_ALLOWED"),
    (drf.UnsupportedMediaType, 415, "UNSUPPORTED_MEDIA_TYPE"),
    (drf.NotAcceptable, 406, "INVALID_REQUEST"),
    (drf.NotFound, 404, "NOT_FOUND"),
    (Http404, 404, "NOT_FOUND"),
    (drf.AuthenticationFailed, 401, "INVALID_PLATFORM_KEY"),
    (drf.PermissionDenied, 403, "POLICY_DENIED"),
    (PermissionDenied, 403, "POLICY_DENIED"),
    (BadRequest, 400, "INVALID_REQUEST"),
)

FOR_OPERATORS: Mapping[type[Exception], str] = {
    policy.ProductSuspended: "The product is suspended. Ask the operator to resume it.",
    engines.CapacityExhausted: "No host has room for one more engine. Try again later, or destroy or stop engines.",
    engines.PortExhaustion: "No port is free for one more engine. Try again later, or destroy an engine.",
}
"""By exception whose own text is for operators, as in the admin: the sentence for products.

The texts have what products must not learn: the reason that staff gave, how full the host is, the host's settings.
"""

OUR_OWN_WORDS = {  # by code: messages for exceptions whose own text is not written for callers
    "BACKEND_ERROR": "The engines' runtime could not do this. Try again later, or ask the operator.",
    "UNAVAILABLE": "The service is not available just now; try again in a few seconds.",
    "INTERNAL_ERROR": "Something went wrong on our side; quote the request id when you report it.",
}


# Refusals for want of a thread or a place: a repeat of the request soon finds room.
CROWDED = (policy.ShareTaken, engines.Crowded, engines.LogsUnavailable, engines.NoPlaceToWait)
RETRY_S = (1, 3)  # `Retry-After` of CROWDED, random between the two: the refused callers come back one after the other


def handle(error: Exception, context: Mapping[str, Any]) -> Response:
    """DRF's exception handler: answer every error of an endpoint, known or unknown, with the error envelope."""
    status, code = classify(error)
    if status >= 500 and not isinstance(error, (engines.EngineError, BackendError, policy.ShareTaken)):
        log.error("request_failed", code=code, exc_info=error if code == "INTERNAL_ERROR" else None, error=type(error).__name__)
    response = Response(body(error), status=status, headers=_headers(error))
    response.exception = True
    return response


_OF_CAUSE = {  # by the error_code of a failed operation; every error_code outside the table is 502 BACKEND_ERROR
    "boot_timeout": (504, "BOOT_TIMEOUT"),
    "port_exhaustion": (503, "PORT_EXHAUSTION"),
    "port_taken": (503, "PORT_EXHAUSTION"),
    "network_full": (503, "CAPACITY_EXHAUSTED"),
    "disk_full": (503, "CAPACITY_EXHAUSTED"),
    "network_unguarded": (503, "UNAVAILABLE"),
    "runtime_missing": (503, "UNAVAILABLE"),
    "runtime_not_allowed": (503, "UNAVAILABLE"),
    "backend_unavailable": (503, "UNAVAILABLE"),
}


def classify(error: Exception) -> tuple[int, str]:
    """HTTP status and error code of an exception; 500 INTERNAL_ERROR for an exception in neither table."""
    if isinstance(error, engines.NoPlaceToWait):
        return 503, "UNAVAILABLE"
    if isinstance(error, engines.Unfinished) and error.operation.kind == Kind.PROVISION:
        return 504, "BOOT_TIMEOUT"
    if isinstance(error, engines.Unsuccessful):
        if found := _OF_CAUSE.get(error.operation.error_code):
            return found
        if error.operation.state == "superseded":
            return 409, "OPERATION_IN_PROGRESS"
    for kind, status, code in TABLE:
        if isinstance(error, kind):
            return status, code
    return 500, "INTERNAL_ERROR"


def body(error: Exception) -> dict[str, Any]:
    """The response body for an exception."""
    _, code = classify(error)
    return envelope(code, _message(error, code), _details(error))


def envelope(code: str, message: str, details: Any = None) -> dict[str, Any]:
    """The error envelope, with the id of the current request if known."""
    error: dict[str, Any] = {"code": code, "message": message}
    if details:
        error["details"] = details
    call = context.known()
    if call is not None and call.request_id:
        error["request_id"] = call.request_id
    return {"error": error}


def _message(error: Exception, code: str) -> str:
    if isinstance(error, (policy.PolicyError, engines.EngineError)):
        return next((words for kind, words in FOR_OPERATORS.items() if isinstance(error, kind)), str(error))
    if isinstance(error, drf.ValidationError):
        return "The request is not valid; details name each field and what it must be."
    if isinstance(error, drf.APIException):
        return str(error.detail)
    return OUR_OWN_WORDS.get(code, "The requested object does not exist." if code == "NOT_FOUND" else "The request was refused.")


def _details(error: Exception) -> Any:
    if isinstance(error, drf.ValidationError):
        return {"fields": error.detail}
    if isinstance(error, policy.Denied):
        return error.metadata()
    if isinstance(error, engines.CapacityExhausted):
        return {"rule": error.rule}  # not how full the host is over all products
    if isinstance(error, engines.ProductHasEngines):
        return {"engines": error.engines}
    if isinstance(error, engines.OperationInProgress):
        return {"operation_id": str(error.operation_id)}
    if isinstance(error, (engines.Unfinished, engines.Unsuccessful)):
        return {"operation_id": str(error.operation.pk), "cause": error.operation.error_code or error.operation.state}
    return None


def _headers(error: Exception) -> dict[str, str]:
    if isinstance(error, policy.RateLimited):
        return {"Retry-After": str(error.retry_after_s), **(error.window.headers() if error.window else {})}
    if isinstance(error, CROWDED):
        return {"Retry-After": str(random.randint(*RETRY_S))}  # noqa: S311 (not for secrets)
    if isinstance(error, drf.MethodNotAllowed):
        return {}
    header = getattr(error, "auth_header", None)
    return {"WWW-Authenticate": header} if header else {}


# -- errors outside an endpoint ----------------------------------------------------------------------------------------


def outside(status: int, code: str, message: str) -> HttpResponse:
    """The answer to a request that reaches no endpoint."""
    return JsonResponse(envelope(code, message), status=status)


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    if request.path.startswith("/admin/") and not isinstance(exception, DisallowedHost):  # a page has links, which need the host
        return defaults.bad_request(request, exception)
    return outside(400, "INVALID_REQUEST", "The request cannot be read; check its host and headers.")


def forbidden(request: HttpRequest, exception: Exception) -> HttpResponse:
    if request.path.startswith("/admin/"):
        return denials.of_staff(request, defaults.permission_denied(request, exception), "permission")
    return outside(403, "POLICY_DENIED", "You have no permission for this request.")


def csrf_failed(request: HttpRequest, reason: str = "") -> HttpResponse:
    """Django's page for a form without its token."""
    return denials.of_staff(request, csrf.csrf_failure(request, reason), reason)


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    if request.path.startswith("/admin/"):
        return defaults.page_not_found(request, exception)
    return no_such_path()


def no_such_path() -> HttpResponse:
    return outside(404, "NOT_FOUND", "The path does not exist; see the API's documentation.")


def server_error(request: HttpRequest) -> HttpResponse:
    """500; or 503 if PostgreSQL is away, or has stopped what the request asked of it."""
    error = sys.exception()
    status, code = classify(error) if isinstance(error, Exception) else (500, "INTERNAL_ERROR")
    if code != "UNAVAILABLE":
        status, code = 500, "INTERNAL_ERROR"
    if not request.path.startswith("/admin/"):
        return outside(status, code, OUR_OWN_WORDS[code])
    if status != 503:
        return defaults.server_error(request)
    response = render(request, "503.html", status=503)
    return brakes.answer(response, error, status=503) if isinstance(error, Paused) else response
