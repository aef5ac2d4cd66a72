"""The fleet over REST: a product's status and metrics, and whether this process can serve."""

from rest_framework.decorators import api_view, authentication_classes, permission_classes
from rest_framework.request import Request
from rest_framework.response import Response

from fleet import metrics as figures
from fleet import status as state
from fleet.errors import envelope
from policy.models import Product


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
