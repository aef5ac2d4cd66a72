"""An engine's last lines over REST."""

from rest_framework.decorators import api_view
from rest_framework.request import Request
from rest_framework.response import Response

from common.parameters import read_whole
from engines import lifecycle
from engines.logs import MAX_TAIL, TAIL, fetch
from policy.models import Product


@api_view(["GET"])
def logs(request: Request, user_id: str) -> Response:
    """GET /engines/{user_id}/logs: the last `tail` lines of the engine, oldest first."""
    assert isinstance(request.auth, Product)
    tail = read_whole(request, "tail", default=TAIL, least=1, most=MAX_TAIL)
    engine = lifecycle.find(request.auth, user_id)
    return Response({"engine_id": str(engine.pk), "user_id": engine.user_id, "lines": fetch(engine, tail)})
