"""Engines over REST. A product sees its own and nothing else: every lookup starts from `request.auth`."""

import json
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from typing import Any
from urllib.parse import unquote
from uuid import UUID

from django.http import HttpRequest, HttpResponse
from django.views.decorators.csrf import csrf_exempt
from rest_framework.decorators import api_view, authentication_classes, permission_classes
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from audit import actors
from common.bodies import Body, Flag, Text, read
from common.parameters import read_whole
from common.settings import settings
from common.times import iso
from engines import admission, lifecycle, operations, queues, tenants
from engines.addresses import url
from engines.admission import Admission
from engines.errors import EngineError, EngineNotFound, Unfinished
from engines.models import Engine, Kind, Operation, Status
from policy import crypto, idempotency, products
from policy.api import operator_view
from policy.auth import HasAnyScope, MayAdmit, MayHoldEngineKey, recognise
from policy.errors import PolicyError
from policy.idempotency import Kept
from policy.models import Product, Scope

PLAIN = 1024  # bytes of a body that may still be plain
Flags = dict[str, Any]  # `admission.admit` takes them by name
FLAGS = {"auto_provision": False, "auto_wake": False}
PLAIN_HEADERS = {"Allow": "POST, OPTIONS"}  # as the framework has it
MARGIN_S = 5.0  # a provision is waited for this much longer than an engine may boot


class UserId:
    """Path converter: one segment of the raw path, decoded."""

    regex = "[^/]+"

    def to_python(self, value: str) -> str:
        try:
            return unquote(value, errors="strict")
        except UnicodeDecodeError as error:
            raise ValueError("not UTF-8") from error

    def to_url(self, value: str) -> str:
        return value


class Provision(Body):
    user_id = Text(max_length=255)
    engine_version = Text(default="", max_length=255)


class Admit(Body):
    auto_provision = Flag(default=False)
    auto_wake = Flag(default=False)


class NewSuspension(Body):
    reason = Text(max_length=products.MAX_REASON)
    stop_engines = Flag(default=False)


class Resumption(Body):
    reason = Text(max_length=products.MAX_REASON)


class Nothing(Body):
    pass


# -- rendering ---------------------------------------------------------------------------------------------------------


def render(engine: Engine) -> dict[str, Any]:
    """The engine as lists show it: without its key."""
    return {
        "engine_id": str(engine.pk),
        "user_id": engine.user_id,
        "status": engine.status,
        "url": url(engine),
        "engine_version": engine.engine_version,
        "created_at": iso(engine.created_at),
        "last_health_at": iso(engine.last_health_at),
    }


def render_with_key(engine: Engine) -> dict[str, Any]:
    """The engine with its key in plaintext: only for the product that owns it. Raises EngineNotFound once it is destroyed."""
    if not engine.key_ciphertext:
        raise EngineNotFound("The engine is destroyed.")
    return {**render(engine), "api_key": crypto.decrypt(engine.key_ciphertext)}


def render_operation(operation: Operation) -> dict[str, Any]:
    """The operation with its steps, each with its time and attempt."""
    error = {"code": operation.error_code, "message": operation.error_message} if operation.error_code else None
    return {
        "operation_id": str(operation.pk),
        "engine_id": str(operation.engine_id),
        "user_id": operation.engine.user_id,
        "kind": operation.kind,
        "state": operation.state,
        "attempt": operation.attempt,
        "queue": operation.queue,
        "queue_position": queues.position(operation),
        "created_at": iso(operation.created_at),
        "finished_at": iso(operation.finished_at),
        "steps": [{**step, "at": iso(datetime.fromisoformat(step["at"]))} for step in operation.steps],
        "error": error,
    }


# -- waiting -----------------------------------------------------------------------------------------------------------


def _answer(
    request: Request, operation: Operation, timeout_s: float, render_done: Callable[[Engine], dict[str, Any]]
) -> Response:
    """Wait for the operation and answer with its engine; past the deadline a 202 to those who said that they can take one."""
    wait_s, takes_202 = _preference(request, timeout_s)
    try:
        done = operations.finish(operation, wait_s)
    except Unfinished as unfinished:
        return _accepted(unfinished, takes_202)
    engine = Engine.objects.get(pk=done.engine_id)
    if engine.destroyed_at is not None and done.kind != Kind.DESTROY:  # a replay of what is long past
        raise EngineNotFound("The engine was destroyed since.")
    return Response(render_done(engine))


def _accepted(unfinished: Unfinished, takes_202: bool) -> Response:
    """The operation goes on; raises `unfinished` again for a caller who cannot take a 202."""
    if not takes_202:
        raise unfinished
    operation = unfinished.operation
    body = {"operation_id": str(operation.pk), "kind": operation.kind, "state": operation.state}
    return Response(body, status=202, headers={"Location": f"/operations/{operation.pk}"})


def _preference(request: Request, timeout_s: float) -> tuple[float, bool]:
    """How long to wait, and whether a 202 may follow, from `Prefer: respond-async` and `wait=N` (RFC 7240)."""
    prefer = request.headers.get("Prefer", "").lower()
    wait = re.search(r"(?:^|[,;\s])wait\s*=\s*(\d{1,6})", prefer)
    is_async = re.search(r"(?:^|[,;\s])respond-async(?:$|[,;\s])", prefer) is not None
    if wait:
        return min(float(wait[1]), timeout_s), True
    return (0.0, True) if is_async else (timeout_s, False)


def _product(request: Request) -> Product:
    assert isinstance(request.auth, Product)
    return request.auth


# -- endpoints ---------------------------------------------------------------------------------------------------------


@csrf_exempt
def provision_or_engine(request: HttpRequest) -> HttpResponse:
    """/engines/provision: a POST provisions; any other method is for the engine of a user with this very name."""
    return provision(request) if request.method == "POST" else engine(request, user_id="provision")


@api_view(["POST"])
def provision(request: Request) -> Response:
    """POST /engines/provision: a new engine for `user_id`, answered when it is healthy."""
    body, product = read(request, Provision), _product(request)
    by, version = actors.product(product.slug), body["engine_version"]
    operation = _once(request, lambda: lifecycle.provision(product, body["user_id"], by=by, engine_version=version))
    return _answer(request, operation, settings.ENV.boot_timeout_s + MARGIN_S, _provisioned)


def _provisioned(engine: Engine) -> dict[str, Any]:
    full = render_with_key(engine)
    return {name: full[name] for name in ("engine_id", "user_id", "status", "url", "api_key")}


@api_view(["GET"])
def engines(request: Request) -> Response:
    """GET /engines: the product's living engines, newest first."""
    status = request.query_params.get("status")
    living = [choice for choice in Status.values if choice != Status.DESTROYED]
    if status is not None and status not in living:
        raise ValidationError({"status": [f"Must be one of {', '.join(living)}."]})
    found = Engine.objects.filter(product=_product(request), destroyed_at=None)
    found = found.filter(status=status) if status else found
    offset = read_whole(request, "offset", default=0, least=0, most=999_999_999)
    limit = read_whole(request, "limit", default=100, least=1, most=1000)
    return Response({"engines": [render(engine) for engine in found[offset : offset + limit]], "total": found.count()})


@api_view(["GET", "DELETE"])
@permission_classes([MayHoldEngineKey])
def engine(request: Request, user_id: str) -> Response:
    """GET and DELETE /engines/{user_id}."""
    product = _product(request)
    if request.method == "GET":
        return Response(render_with_key(lifecycle.find(product, user_id)))
    operation = _ask(request, user_id, lifecycle.destroy)
    timeout_s = settings.ENV.stop_grace_s + settings.ENV.wait_s
    return _answer(request, operation, timeout_s, lambda gone: {"status": "destroyed", "engine_id": str(gone.pk)})


@api_view(["POST"])
def start(request: Request, user_id: str) -> Response:
    """POST /engines/{user_id}/start."""
    operation = _ask(request, user_id, lifecycle.start)
    return _answer(
        request, operation, settings.ENV.boot_timeout_s + MARGIN_S, lambda started: {"status": "running", "url": url(started)}
    )


@api_view(["POST"])
def stop(request: Request, user_id: str) -> Response:
    """POST /engines/{user_id}/stop."""
    operation = _ask(request, user_id, lifecycle.stop)
    return _answer(request, operation, settings.ENV.stop_grace_s + settings.ENV.wait_s, lambda _: {"status": "stopped"})


@api_view(["POST"])
def rotate_key(request: Request, user_id: str) -> Response:
    """POST /engines/{user_id}/rotate-key: answered with the new key once the engine is healthy with it."""
    operation = _ask(request, user_id, lifecycle.rotate_key)
    timeout_s = settings.ENV.stop_grace_s + settings.ENV.boot_timeout_s + MARGIN_S
    return _answer(request, operation, timeout_s, _rotated)


def _rotated(engine: Engine) -> dict[str, Any]:
    full = render_with_key(engine)
    return {name: full[name] for name in ("engine_id", "user_id", "api_key")}


def _ask(request: Request, user_id: str, verb: Callable[..., Operation]) -> Operation:
    """Open (or join) the operation of a verb without parameters, for the product's engine."""
    read(request, Nothing)
    product = _product(request)
    by = actors.product(product.slug)
    return _once(request, lambda: verb(lifecycle.find(product, user_id), by=by))


def _once(request: Request, intent: Callable[[], Operation]) -> Operation:
    """State the intent, once per `Idempotency-Key`; a replay gets the operation that the first call opened."""
    return idempotency.once(
        request,
        str(_product(request).pk),
        intent,
        keep=lambda operation: Kept(operation_id=operation.pk),
        replay=lambda kept: operations.get(_product(request), kept.named()),
        refusals=(EngineError, PolicyError),
    )


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
            _count(product, user_id, headers)
            body = json.dumps(_told(admission.admit(product, user_id, **flags)), ensure_ascii=False, separators=(",", ":"))
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
    flags, product = read(request, Admit), _product(request)
    wait_s, takes_202 = _preference(request, admission.longest_s())
    headers: dict[str, str] = {}
    try:
        return Response(_told(_admit(request, product, user_id, flags, wait_s, headers)))
    except Unfinished as unfinished:
        return _accepted(unfinished, takes_202)
    finally:
        _add_headers(request, headers)


def _admit(request: Request, product: Product, user_id: str, flags: Flags, wait_s: float, headers: dict[str, str]) -> Admission:
    """Admit, once per `Idempotency-Key` where the flags may lead to an operation; without flags an admit has nothing to keep."""
    if any(flags.values()) and (kept := idempotency.recall(request, str(product.pk))) is not None:
        return admission.readmit(product, user_id, operations.get(product, kept.named()), wait_s)
    _count(product, user_id, headers)
    return admission.admit(product, user_id, timeout_s=wait_s, intend=partial(_once, request), **flags)


def _count(product: Product, user_id: str, headers: dict[str, str]) -> None:
    """Count the admit, and put what is left of the rate limit into `headers`."""
    if (window := admission.count(product, user_id)) is not None:
        headers |= window.headers()


def _told(decided: Admission) -> dict[str, Any]:
    """The body of the answer to an admit."""
    if decided.engine is None:
        return {"admitted": False, "engine": None, "reason": decided.reason}
    return {"admitted": True, "engine": render_with_key(decided.engine)}


def _add_headers(request: Request, headers: Mapping[str, str]) -> None:
    """Have them in the answer, whatever it will be."""
    assert request.parser_context is not None
    request.parser_context["view"].headers |= headers


@api_view(["GET"])
@permission_classes([HasAnyScope])
def operation(request: Request, operation_id: UUID) -> Response:
    """GET /operations/{operation_id}."""
    return Response(render_operation(operations.get(_product(request), operation_id)))


# -- products, with an admin key ---------------------------------------------------------------------------------------


def _render_suspension(product: Product) -> dict[str, Any]:
    reason = product.suspension_reason or None
    return {"product_id": str(product.pk), "suspended_at": iso(product.suspended_at), "reason": reason}


@operator_view("POST")
def suspend(request: Request, product_id: UUID) -> Response:
    """POST /products/{product_id}/suspend: what would make its engines serve is refused, from the next request on."""
    done = tenants.suspend(product_id, by=actors.ADMIN, **read(request, NewSuspension))
    return Response({**_render_suspension(done.product), "stopping": done.stopping, "busy": done.busy})


@operator_view("POST")
def resume(request: Request, product_id: UUID) -> Response:
    """POST /products/{product_id}/resume: the end of the suspension; no engine is started."""
    return Response(_render_suspension(products.resume(product_id, by=actors.ADMIN, **read(request, Resumption))))


@operator_view("DELETE")
def product(request: Request, product_id: UUID) -> Response:
    """DELETE /products/{product_id}: refused while engines of it live."""
    read(request, Nothing)
    tenants.delete(product_id, by=actors.ADMIN)
    return Response({"status": "deleted", "product_id": str(product_id)})
