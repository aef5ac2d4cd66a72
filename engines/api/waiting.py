"""Wait for an operation during a request, for at most the time in the caller's `Prefer` header (RFC 7240)."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from rest_framework.request import Request
from rest_framework.response import Response

from engines import operations
from engines.api.answers import render_accepted
from engines.errors import EngineNotFound, Unfinished
from engines.models import Engine, Kind, Operation


def answer(
    request: Request, operation: Operation, timeout_s: float, render_done: Callable[[Engine], Mapping[str, Any]]
) -> Response:
    """Wait for the operation and answer with its engine, or with a 202 after the deadline.

    The deadline is `timeout_s`, or a shorter time in `Prefer`. When too many requests wait, the answer comes before the deadline.
    Raises Unfinished (NoPlaceToWait before the deadline) if the caller does not take a 202, EngineNotFound for a replay if the
    engine is destroyed, and the error of a failed operation.
    """
    wait_s, takes_202 = preference(request, timeout_s)
    try:
        done = operations.finish(operation, wait_s)
    except Unfinished as unfinished:
        return accepted(unfinished, takes_202)
    engine = Engine.objects.get(pk=done.engine_id)
    if engine.destroyed_at is not None and done.kind != Kind.DESTROY:  # the replay of an old request
        raise EngineNotFound("The engine has been destroyed since the first request.")
    return Response(render_done(engine))


def accepted(unfinished: Unfinished, takes_202: bool) -> Response:
    """The 202 for an unfinished operation; raises `unfinished` if the caller does not take a 202."""
    if not takes_202:
        raise unfinished
    operation = unfinished.operation
    return Response(render_accepted(operation), status=202, headers={"Location": f"/operations/{operation.pk}"})


def preference(request: Request, timeout_s: float) -> tuple[float, bool]:
    """The seconds to wait, at most `timeout_s`, and whether the caller takes a 202: `Prefer: respond-async` or `wait=N`."""
    prefer = request.headers.get("Prefer", "").lower()
    wait = re.search(r"(?:^|[,;\s])wait\s*=\s*(\d{1,6})", prefer)
    is_async = re.search(r"(?:^|[,;\s])respond-async(?:$|[,;\s])", prefer) is not None
    if wait:
        return min(float(wait[1]), timeout_s), True
    return (0.0, True) if is_async else (timeout_s, False)
