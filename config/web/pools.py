"""Separate threads for the hot path and for all else, chosen by the first line of a request."""

import re
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any

from common import compute_permit

_HOT = re.compile(rb"POST /engines/[^/? ]+/admit[? ]|(?:GET|HEAD) /health[? ]")
SMALL = 16 * 1024  # bytes of an admit with its headers; a longer admit is read by the other threads


class Pools(Executor):
    """`threads` threads for admits and `/health`, and as many for all other requests."""

    def __init__(self, threads: int) -> None:
        self._hot, self._other = ThreadPoolExecutor(threads, "hot"), ThreadPoolExecutor(threads, "other")

    def submit(self, handle: Callable[..., Any], conn: Any, /) -> "Future[Any]":  # type: ignore[override]  # of a connection
        if is_hot(conn.request):
            return self._hot.submit(handle, conn)
        return self._other.submit(_in_turn, handle, conn)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        for pool in (self._hot, self._other):
            pool.shutdown(wait, cancel_futures=cancel_futures)


def is_hot(request: bytes) -> bool:
    """Whether the request is an admit or a question for our health."""
    return _HOT.match(request) is not None and len(request) <= SMALL


def _in_turn(handle: Callable[..., Any], conn: Any) -> Any:
    with compute_permit.held():
        return handle(conn)
