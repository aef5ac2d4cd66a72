"""The fleet over REST: a product's status and metrics, and whether this process can serve."""

from typing import Any

from rest_framework import serializers
from rest_framework.decorators import api_view, authentication_classes, permission_classes
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from common.bodies import Body, Flag, Text, read
from engines import admission
from engines.admission import Explanation, Question
from engines.admission.explanation import VERBS
from fleet import metrics as figures
from fleet import status as state
from fleet.errors import classify, envelope
from policy import products
from policy.auth import AnyKeyAuthentication, MayExplain
from policy.errors import ProductNotFound
from policy.models import Product

_ONLY_OF = {"engine_version": "provision", "auto_provision": "admit", "auto_wake": "admit"}


class Explain(Body):
    verb = serializers.ChoiceField(choices=list(VERBS))
    user_id = Text(max_length=255)
    engine_version = Text(required=False, max_length=255)
    auto_provision = Flag(required=False)
    auto_wake = Flag(required=False)
    product_id = serializers.UUIDField(required=False)


@api_view(["GET"])
def status(request: Request) -> Response:
    """GET /status."""
    assert isinstance(request.auth, Product)
    return Response(state.of_product(request.auth))


@api_view(["GET"])
def metrics(request: Request) -> Response:
    """GET /metrics."""
    assert isinstance(request.auth, Product)
    return Response(figures.of_product(request.auth))


@api_view(["GET", "HEAD"])
@authentication_classes([])
@permission_classes([])
def health(request: Request) -> Response:
    """GET /health: 200 while the database answers and every migration is applied."""
    if reason := state.unavailable():
        return Response(envelope("UNAVAILABLE", f"Not able to serve: {reason}."), status=503)
    return Response({"status": "ok", **state.parts()})


# -- explain -----------------------------------------------------------------------------------------------------------


@api_view(["POST"])
@authentication_classes([AnyKeyAuthentication])
@permission_classes([MayExplain])
def explain(request: Request) -> Response:
    """POST /policy/explain: what would happen, by which rule; nothing does, so it keeps no `Idempotency-Key` either."""
    body = read(request, Explain)
    for field, verb in _ONLY_OF.items():
        if field in body and body["verb"] != verb:
            raise ValidationError({field: [f"Only with the verb {verb}."]})
    product = _asked_about(request, body.pop("product_id", None))
    return Response(_render(admission.explain(product, Question(**body))))


def _asked_about(request: Request, product_id: Any) -> Product:
    """The product whose key it is, or for the operator the one that the body names. Raises ProductNotFound, ValidationError."""
    if not isinstance(request.auth, Product):
        if product_id is None:
            raise ValidationError({"product_id": ["This field is required with an admin key."]})
        return products.get(product_id)
    if product_id not in (None, request.auth.pk):
        raise ProductNotFound(f"No product of yours has the id {product_id}.")
    return request.auth


def _render(told: Explanation) -> dict[str, Any]:
    fields = ("rule", "allowed", "limit", "value", "headroom")
    code = told.refusal if isinstance(told.refusal, str) else classify(told.refusal)[1]
    return {
        "allowed": told.allowed,
        "decisions": [{name: getattr(decision, name) for name in fields} for decision in told.decisions],
        "would": told.would,
        "refusal": code or None,
    }
