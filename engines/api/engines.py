"""Engines over REST: a product sees only its own engines."""

from django.http import HttpRequest, HttpResponse
from django.views.decorators.csrf import csrf_exempt
from rest_framework.decorators import api_view, permission_classes
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from audit import actors
from common.bodies import read
from common.parameters import read_whole
from common.settings import settings
from engines import lifecycle
from engines.api.answers import (
    Engines,
    render,
    render_destroyed,
    render_provisioned,
    render_rotated,
    render_started,
    render_stopped,
    render_with_key,
)
from engines.api.bodies import Provision
from engines.api.callers import product_of
from engines.api.intents import once, request_verb
from engines.api.waiting import answer
from engines.models import Engine, Status
from policy.auth import MayHoldEngineKey

MARGIN_S = 5.0  # waiting time added to the boot time-out


@csrf_exempt
def provision_or_engine(request: HttpRequest) -> HttpResponse:
    """/engines/provision: a POST provisions an engine; GET and DELETE are for the engine of a user named `provision`."""
    return provision(request) if request.method == "POST" else engine(request, user_id="provision")


@api_view(["POST"])
def provision(request: Request) -> Response:
    """POST /engines/provision: a new engine for `user_id`, answered once the engine is healthy."""
    body, product = read(request, Provision), product_of(request)
    by, version = actors.product(product.slug), body["engine_version"]
    operation = once(request, lambda: lifecycle.provision(product, body["user_id"], by=by, engine_version=version))
    return answer(request, operation, settings.ENV.boot_timeout_s + MARGIN_S, render_provisioned)


@api_view(["GET"])
def engines(request: Request) -> Response:
    """GET /engines: the product's living engines, newest first."""
    status = request.query_params.get("status")
    living = [choice for choice in Status.values if choice != Status.DESTROYED]
    if status is not None and status not in living:
        raise ValidationError({"status": [f"Must be one of {', '.join(living)}."]})
    found = Engine.objects.living().filter(product=product_of(request))
    found = found.filter(status=status) if status else found
    offset = read_whole(request, "offset", default=0, least=0, most=999_999_999)
    limit = read_whole(request, "limit", default=100, least=1, most=1000)
    limit_mb = lifecycle.disk_mb(product_of(request))
    page: Engines = {"engines": [render(engine, limit_mb) for engine in found[offset : offset + limit]], "total": found.count()}
    return Response(page)


@api_view(["GET", "DELETE"])
@permission_classes([MayHoldEngineKey])
def engine(request: Request, user_id: str) -> Response:
    """GET and DELETE /engines/{user_id}."""
    product = product_of(request)
    if request.method == "GET":
        return Response(render_with_key(lifecycle.find(product, user_id), lifecycle.disk_mb(product)))
    operation = request_verb(request, user_id, lifecycle.destroy)
    timeout_s = settings.ENV.stop_grace_s + settings.ENV.wait_s
    return answer(request, operation, timeout_s, render_destroyed)


@api_view(["POST"])
def start(request: Request, user_id: str) -> Response:
    """POST /engines/{user_id}/start."""
    operation = request_verb(request, user_id, lifecycle.start)
    return answer(request, operation, settings.ENV.boot_timeout_s + MARGIN_S, render_started)


@api_view(["POST"])
def stop(request: Request, user_id: str) -> Response:
    """POST /engines/{user_id}/stop."""
    operation = request_verb(request, user_id, lifecycle.stop)
    return answer(request, operation, settings.ENV.stop_grace_s + settings.ENV.wait_s, render_stopped)


@api_view(["POST"])
def rotate_key(request: Request, user_id: str) -> Response:
    """POST /engines/{user_id}/rotate-key: answered once the engine is healthy with its new key."""
    operation = request_verb(request, user_id, lifecycle.rotate_key)
    timeout_s = settings.ENV.stop_grace_s + settings.ENV.boot_timeout_s + MARGIN_S
    return answer(request, operation, timeout_s, render_rotated)
