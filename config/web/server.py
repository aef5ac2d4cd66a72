"""gunicorn's worker with separate threads for the hot path, and with JSON answers to unreadable requests.

gunicorn itself answers an unreadable request in HTML, without calling Django. gunicorn itself also has a single pool of threads:
an admit behind a hundred provisions would wait until all provisions are accepted.
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

_OURS = (http.InvalidResponseHeader, http.InvalidResponseHeaderName)  # our own faults, though their base classes blame the client
_CHUNKS = (http.InvalidChunkSize, http.ChunkMissingTerminator, http.InvalidChunkExtension)
_MESSAGES = (
    (http.LimitRequestLine, "The request line is too long."),
    (http.LimitRequestHeaders, "There are too many headers, or one is too long."),
    (http.InvalidHeader, "A header cannot be read."),
    (http.InvalidHeaderName, "The name of a header cannot be read."),
    (http.ObsoleteFolding, "A header continues on a second line; headers must be on one line."),
    (http.UnsupportedTransferCoding, "Only chunked transfer encoding is supported."),
    (_CHUNKS, "The chunks of the body cannot be read."),
    (http.ExpectationFailed, "Only the expectation 100-continue is supported."),
    (http.ParseException, "The HTTP request cannot be read; check its first line and its headers."),
)


_HOT = re.compile(rb"POST [^ ]*/admit[? ]|(?:GET|HEAD) /health[? ]")
# Seconds after which a computing thread yields: Python's own 5 ms add up when a hot-path thread waits behind ten threads.
SWITCH_S = 0.001
_LOOK = 4096  # bytes; a longer request line does not count as hot


class Pools(Executor):
    """Separate threads for the hot path and for all else, chosen by the first line of the waiting request."""

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
    """Bytes received on the socket and not read yet, at most `_LOOK`; empty when nothing has arrived."""
    try:
        return client.recv(_LOOK, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except OSError:
        return b""


class Worker(ThreadWorker):  # type: ignore[misc]  # gunicorn is not typed
    """gunicorn's threaded worker, with two pools of threads."""

    def get_thread_pool(self) -> Pools:
        sys.setswitchinterval(SWITCH_S)
        return Pools(self.cfg.threads)

    def enqueue_req(self, conn: Any) -> None:
        """Hand a connection to a thread once the request has begun to arrive; a new connection may still be silent."""
        if conn.initialized or conn.data_ready or _peek(conn.sock):
            super().enqueue_req(conn)
            return
        conn.set_timeout()
        self.pending_conns.append(conn)
        self.poller.register(conn.sock, selectors.EVENT_READ, partial(self.on_pending_socket_readable, conn))

    def handle_error(self, req: Any, client: socket.socket, addr: Any, exc: BaseException) -> None:
        """Answer in the error envelope, and log the error without the bytes received: a header may contain a key."""
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
    """The bytes of a 400 response with `message`, or of a 500 response when `message` is empty."""
    from fleet import errors  # here: gunicorn loads the module before Django is set up

    request_id = context.request_id.get()
    status, code = ("400 Bad Request", "INVALID_REQUEST") if message else ("500 Internal Server Error", "INTERNAL_ERROR")
    body = json.dumps(errors.envelope(code, message or errors.OUR_OWN_WORDS[code])).encode()
    head = (
        f"HTTP/1.1 {status}\r\nConnection: close\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nX-Request-ID: {request_id}\r\n\r\n"
    )
    return head.encode() + body
