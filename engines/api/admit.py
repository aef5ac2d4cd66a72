"""`admit` over REST, the hot path: a plain request is answered without the framework, any other request by it."""

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
from engines import admission, operations
from engines.admission import Admission
from engines.api.answers import render_admission
from engines.api.bodies import Admit
from engines.api.callers import product_of
from engines.api.intents import once
from engines.api.waiting import accepted, preference
from engines.errors import Unfinished
from policy import idempotency
from policy.auth import MayAdmit, recognise
from policy.models import Product, Scope
from policy.sliding_window import Window

PLAIN = 1024  # bytes of a body that may still be plain
Flags = dict[str, Any]  # `admission.admit` takes them by name
FLAGS = {"auto_provision": False, "auto_wake": False}
PLAIN_HEADERS = {"Allow": "POST, OPTIONS"}  # as the framework has it


@csrf_exempt
def lean_admit(request: HttpRequest, user_id: str) -> HttpResponse:
    """POST /engines/{user_id}/admit, without the framework for what is plain and allowed: it takes longer than all the rest.

    Anything else is `admit`'s, with nothing counted yet, and what is refused on the way is put into words by the framework too.
    """
    headers: dict[str, str] = {}
    try:
        plain = _read_plain(request)
        if plain is not None:
            product, flags = plain
            admitted = admission.admit(product, user_id, on_counted=partial(_add_limit, headers), **flags)
            body = json.dumps(render_admission(admitted), ensure_ascii=False, separators=(",", ":"))
            return HttpResponse(body, content_type="application/json", headers={**PLAIN_HEADERS, **headers})
    except Exception as error:  # noqa: BLE001 (whatever it is: the framework's handler makes an answer of it)
        return _refuse(request, error=error, headers=headers)
    return admit(request, user_id=user_id)


def _read_plain(request: HttpRequest) -> tuple[Product, Flags] | None:
    """The caller and the flags of a request that may admit and asks for nothing special; None for any other."""
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
    """The flags of an admit, those that are not given as false; None for what is to be read, or refused, by `Admit`."""
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
    """Let the framework answer an error that came up without it."""
    _add_headers(request, headers)
    raise error


@api_view(["POST"])
@permission_classes([MayAdmit])
def admit(request: Request, user_id: str) -> Response:
    """POST /engines/{user_id}/admit, as any other endpoint."""
    flags, product = read(request, Admit), product_of(request)
    wait_s, takes_202 = preference(request, admission.longest_s())
    headers: dict[str, str] = {}
    try:
        return Response(render_admission(_admit(request, product, user_id, flags, wait_s, headers)))
    except Unfinished as unfinished:
        return accepted(unfinished, takes_202)
    finally:
        _add_headers(request, headers)


def _admit(request: Request, product: Product, user_id: str, flags: Flags, wait_s: float, headers: dict[str, str]) -> Admission:
    """Admit, once per `Idempotency-Key` where the flags may lead to an operation; without flags an admit has nothing to keep."""
    if any(flags.values()) and (kept := idempotency.recall(request, str(product.pk))) is not None:
        return admission.readmit(product, user_id, operations.get(product, kept.named()), wait_s)
    on_counted = partial(_add_limit, headers)
    return admission.admit(product, user_id, timeout_s=wait_s, intend=partial(once, request), on_counted=on_counted, **flags)


def _add_limit(headers: dict[str, str], window: Window) -> None:
    """Put what is left of the rate limit into `headers`."""
    headers |= window.headers()


def _add_headers(request: Request, headers: Mapping[str, str]) -> None:
    """Have them in the answer, whatever it will be."""
    assert request.parser_context is not None
    request.parser_context["view"].headers |= headers
