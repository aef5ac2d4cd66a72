"""Operations over REST: their state and progress."""

from uuid import UUID

from rest_framework.decorators import api_view, permission_classes
from rest_framework.request import Request
from rest_framework.response import Response

from engines import operations
from engines.api.answers import render_operation
from engines.api.callers import product_of
from policy.auth import HasAnyScope


@api_view(["GET"])
@permission_classes([HasAnyScope])
def operation(request: Request, operation_id: UUID) -> Response:
    """GET /operations/{operation_id}."""
    return Response(render_operation(operations.get(product_of(request), operation_id)))
