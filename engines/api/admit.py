"""`admit` over REST, the hot path: plain requests are answered without Django REST framework, to save time.

A request is plain if the body is small and valid, the header `Prefer` is missing, and no `Idempotency-Key` has to be kept.
"""

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.views.decorators.csrf import csrf_exempt
from rest_framework.decorators import api_view, authentication_classes, permission_classes
from rest_framework.request import Request
from rest_framework.response import Response

from common.bodies import read
from engines import admission, lifecycle, operations
from engines.admission import Admission
from engines.api.answers import render_admission
from engines.api.bodies import Admit
from engines.api.callers import product_of
from engines.api.intents import once
from engines.api.waiting import accepted, preference
from engines.errors import Unfinished
from policy import idempotency
from policy.auth import AdmitAuthentication, MayAdmit, recognise
from policy.models import Product, Scope
from policy.sliding_window import Window

PLAIN = 1024  # largest body of a plain request, in bytes
Flags = dict[str, Any]  # keyword arguments of `admission.admit`
FLAGS = {"auto_provision": False, "auto_wake": False}
PLAIN_HEADERS = {"Allow": "POST, OPTIONS"}  # the framework sends this header, too


@csrf_exempt
def lean_admit(request: HttpRequest, user_id: str) -> HttpResponse:
    """POST /engines/{user_id}/admit: answer a plain request without the framework, which takes longer than the admit itself.

    The framework handles requests that are not plain or have no valid key (`admit`; no admit has been counted yet), and errors.
    """
    headers: dict[str, str] = {}
    try:
        plain = _read_plain(request)
        if plain is not None:
            product, flags = plain
            admitted = admission.admit(product, user_id, on_counted=partial(_add_limit, headers), **flags)
            body = json.dumps(render_admission(admitted, lifecycle.disk_mb(product)), ensure_ascii=False, separators=(",", ":"))
            return HttpResponse(body, content_type="application/json", headers={**PLAIN_HEADERS, **headers})
    except Exception as error:  # noqa: BLE001 (the framework's handler turns any error into an answer)
        return _refuse(request, error=error, headers=headers)
    return admit(request, user_id=user_id)


def _read_plain(request: HttpRequest) -> tuple[Product, Flags] | None:
    """The calling product and the flags of a plain request; None if the request is not plain, or its key may not admit."""
    meta = request.META
    size = meta.get("CONTENT_LENGTH") or "0"
    if request.method != "POST" or "HTTP_PREFER" in meta or not size.isdigit() or int(size) > PLAIN:
        return None
    flags = _read_flags(request.body, meta.get("CONTENT_TYPE"))
    if flags is None or ("HTTP_IDEMPOTENCY_KEY" in meta and any(flags.values())):
        return None
    product = recognise(meta.get("HTTP_X_PLATFORM_KEY", ""), Scope.ADMIT)
    return None if product is None else (product, flags)


def _read_flags(body: bytes, content_type: str | None) -> Flags | None:
    """All flags of an admit, false by default; None if the body is not plain, and `Admit` has to parse or refuse the body."""
    try:
        given = json.loads(body.decode()) if body else {}
    except (ValueError, RecursionError):
        return None
    if not isinstance(given, dict) or (body and content_type != "application/json"):
        return None
    if not given.keys() <= FLAGS.keys() or not all(isinstance(value, bool) for value in given.values()):
        return None
    return {**FLAGS, **given}


@api_view(["POST"])
@authentication_classes([])
@permission_classes([])
def _refuse(request: Request, error: Exception, headers: Mapping[str, str]) -> Response:
    """Raise `error` inside the framework, to get the framework's answer to an error raised outside."""
    _add_headers(request, headers)
    raise error


@api_view(["POST"])
@authentication_classes([AdmitAuthentication])
@permission_classes([MayAdmit])
def admit(request: Request, user_id: str) -> Response:
    """POST /engines/{user_id}/admit inside the framework, called by `lean_admit`."""
    flags, product = read(request, Admit), product_of(request)
    wait_s, takes_202 = preference(request, admission.longest_s())
    headers: dict[str, str] = {}
    try:
        admitted = _admit(request, product, user_id, flags, wait_s, headers)
        return Response(render_admission(admitted, lifecycle.disk_mb(product)))
    except Unfinished as unfinished:
        return accepted(unfinished, takes_202)
    finally:
        _add_headers(request, headers)


def _admit(request: Request, product: Product, user_id: str, flags: Flags, wait_s: float, headers: dict[str, str]) -> Admission:
    """Admit, once per `Idempotency-Key` if a flag may lead to an operation; an admit without flags keeps no key."""
    if any(flags.values()) and (kept := idempotency.recall(request, str(product.pk))) is not None:
        return admission.readmit(product, user_id, operations.get(product, kept.named()), wait_s)
    on_counted = partial(_add_limit, headers)
    return admission.admit(product, user_id, timeout_s=wait_s, intend=partial(once, request), on_counted=on_counted, **flags)


def _add_limit(headers: dict[str, str], window: Window) -> None:
    """Add the `RateLimit-*` headers of the window to `headers`."""
    headers |= window.headers()


def _add_headers(request: Request, headers: Mapping[str, str]) -> None:
    """Add the headers to the answer, whether the request succeeds or fails."""
    assert request.parser_context is not None
    request.parser_context["view"].headers |= headers
