"""An engine's last lines over REST."""

from rest_framework.decorators import api_view
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from engines import lifecycle
from engines.logs import MAX_TAIL, TAIL, fetch
from policy.models import Product


@api_view(["GET"])
def logs(request: Request, user_id: str) -> Response:
    """GET /engines/{user_id}/logs: the last `tail` lines of the engine, oldest first."""
    assert isinstance(request.auth, Product)
    tail = _read_tail(request)
    engine = lifecycle.find(request.auth, user_id)
    return Response({"engine_id": str(engine.pk), "user_id": engine.user_id, "lines": fetch(engine, tail)})


def _read_tail(request: Request) -> int:
    text = request.query_params.get("tail", str(TAIL))
    if not text.isascii() or not text.isdigit() or len(text) > 9 or not 1 <= int(text) <= MAX_TAIL:
        raise ValidationError({"tail": [f"Must be a whole number from 1 to {MAX_TAIL}."]})
    return int(text)
