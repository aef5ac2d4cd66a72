"""An engine's last log lines over REST: only workers reach a backend, and thus a worker copies the lines into Valkey."""

import time
from uuid import UUID, uuid4

import redis
import structlog
from celery import current_app
from django.db import connection
from kombu.exceptions import OperationalError
from rest_framework.decorators import api_view
from rest_framework.request import Request
from rest_framework.response import Response

from common import times
from common.parameters import read_whole
from common.settings import settings
from common.shares import ReservedPlaces
from engines import lifecycle, log_mailbox
from engines.api.answers import render_logs
from engines.api.callers import product_of
from engines.backends.base import BackendError
from engines.errors import LogsUnavailable
from engines.log_mailbox import MAX_LINES, WAIT_S, Answer
from engines.models import Engine

TASK = "engines.tasks.read_logs"
POLL_S = 0.05
TAIL, MAX_TAIL = 100, MAX_LINES

log = structlog.get_logger(__name__)
# Besides the threads that wait for operations, a quarter of the threads at most wait for logs. A single product never has all of
# these places: with the default settings, 3 of 4.
_places = ReservedPlaces(max(2, settings.ENV.web_threads // 4), reserve=1)


@api_view(["GET"])
def logs(request: Request, user_id: str) -> Response:
    """GET /engines/{user_id}/logs: the last `tail` lines of the engine, oldest first."""
    tail = read_whole(request, "tail", default=TAIL, least=1, most=MAX_TAIL)
    engine = lifecycle.find(product_of(request), user_id)
    return Response(render_logs(engine, fetch(engine, tail)))


def fetch(engine: Engine, tail: int) -> list[str]:
    """Have a worker read the last `tail` lines, and return the lines, oldest first.

    Raises LogsUnavailable if no worker answers within WAIT_S seconds or too many callers wait, and BackendError.
    """
    with _places.hold(engine.product_id) as has_place:
        if not has_place:
            log.warning("product_at_its_share", product_id=str(engine.product_id), of="logs")
            raise LogsUnavailable("Too many callers are waiting for logs; try again in a few seconds.")
        answer = _request_lines(engine.pk, tail)
    if "error" in answer:
        raise BackendError(answer["error"])
    return list(answer["lines"])


def _request_lines(engine_id: UUID, tail: int) -> Answer:
    asked_at = times.database_now().timestamp()
    connection.close()  # no connection is needed while waiting
    token = uuid4()
    deadline = time.monotonic() + WAIT_S
    try:
        # The worker drops the message once the caller has given up. Celery's `expires` would compare the clocks of two processes.
        current_app.send_task(TASK, (str(engine_id), tail, str(token), asked_at), retry=False, ignore_result=True)
        while time.monotonic() < deadline:
            if (answer := log_mailbox.take(token, engine_id)) is not None:
                return answer
            time.sleep(POLL_S)
    except (OperationalError, redis.RedisError, OSError) as error:
        raise LogsUnavailable("Logs cannot be read now; try again in a few seconds.") from error
    raise LogsUnavailable("No worker was free to read the logs; try again in a few seconds.")
