"""gunicorn's worker, with threads of their own for the hot path, and answers in JSON also to what is no request.

gunicorn's own are HTML, and never reach Django. It has one pool of threads: an admit that comes behind a hundred provisions would
wait until they are taken in.
"""

import json
import re
import selectors
import socket
import sys
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from typing import Any
from uuid import uuid4

import structlog
from gunicorn import util
from gunicorn.http import errors as http
from gunicorn.workers.gthread import ThreadWorker

from common import compute_permit, context

log = structlog.get_logger(__name__)

_OURS = (http.InvalidResponseHeader, http.InvalidResponseHeaderName)  # by their base classes they would be the client's
_CHUNKS = (http.InvalidChunkSize, http.ChunkMissingTerminator, http.InvalidChunkExtension)
_MESSAGES = (
    (http.LimitRequestLine, "The request line is too long."),
    (http.LimitRequestHeaders, "There are too many headers, or one is too long."),
    (http.InvalidHeader, "A header cannot be read."),
    (http.InvalidHeaderName, "The name of a header cannot be read."),
    (http.ObsoleteFolding, "A header goes over more than one line."),
    (http.UnsupportedTransferCoding, "Of transfer codings there is chunked and no other."),
    (_CHUNKS, "The chunks of the body cannot be read."),
    (http.ExpectationFailed, "Of expectations there is 100-continue and no other."),
    (http.ParseException, "This is no HTTP request that can be read; check its first line and its headers."),
)


_HOT = re.compile(rb"POST [^ ]*/admit[? ]|(?:GET|HEAD) /health[? ]")
SWITCH_S = 0.001  # between threads that compute: Python's own 5 ms add up where one of the hot path comes last of ten
_LOOK = 4096  # bytes; a request line that is longer is not hot


class Pools(Executor):
    """Threads for the hot path and others for all else; the first line of a request that lies ready says which it is for."""

    def __init__(self, threads: int) -> None:
        self._hot, self._other = ThreadPoolExecutor(threads, "hot"), ThreadPoolExecutor(threads, "other")

    def submit(self, handle: Callable[..., Any], conn: Any, /) -> "Future[Any]":  # type: ignore[override]  # of a connection
        if _HOT.match(_peek(conn.sock)):
            return self._hot.submit(handle, conn)
        return self._other.submit(_in_turn, handle, conn)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        for pool in (self._hot, self._other):
            pool.shutdown(wait, cancel_futures=cancel_futures)


def _in_turn(handle: Callable[..., Any], conn: Any) -> Any:
    with compute_permit.held():
        return handle(conn)


def _peek(client: socket.socket) -> bytes:
    """What has come on the socket and was not read yet, as far as one look shows; empty when there is nothing."""
    try:
        return client.recv(_LOOK, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except OSError:
        return b""


class Worker(ThreadWorker):  # type: ignore[misc]  # gunicorn is not typed
    """Threads, as gunicorn's own, in two pools."""

    def get_thread_pool(self) -> Pools:
        sys.setswitchinterval(SWITCH_S)
        return Pools(self.cfg.threads)

    def enqueue_req(self, conn: Any) -> None:
        """Hand a connection to a thread once its request has begun to come; a new one may still be silent."""
        if conn.initialized or conn.data_ready or _peek(conn.sock):
            super().enqueue_req(conn)
            return
        conn.set_timeout()
        self.pending_conns.append(conn)
        self.poller.register(conn.sock, selectors.EVENT_READ, partial(self.on_pending_socket_readable, conn))

    def handle_error(self, req: Any, client: socket.socket, addr: Any, exc: BaseException) -> None:
        """Answer in the error envelope and log which error it was, without what was sent: a header may be a key."""
        message = "" if isinstance(exc, _OURS) else next((text for kind, text in _MESSAGES if isinstance(exc, kind)), "")
        with context.of_request(str(uuid4())):
            if message:
                log.info("request_unreadable", error=type(exc).__name__)
            else:
                log.error("request_failed", exc_info=exc)
            try:
                util.write_nonblock(client, _answer(message))
            except OSError as gone:
                log.info("client_gone", error=type(gone).__name__)


def _answer(message: str) -> bytes:
    """The bytes of a 400 that says this, or of a 500 when it is empty."""
    from fleet import errors  # here: the class is loaded before Django is

    request_id = context.request_id.get()
    status, code = ("400 Bad Request", "INVALID_REQUEST") if message else ("500 Internal Server Error", "INTERNAL_ERROR")
    body = json.dumps(errors.envelope(code, message or errors.OUR_OWN_WORDS[code])).encode()
    head = (
        f"HTTP/1.1 {status}\r\nConnection: close\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nX-Request-ID: {request_id}\r\n\r\n"
    )
    return head.encode() + body
