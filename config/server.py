"""gunicorn's worker, with answers in JSON also to what is no request: gunicorn's own are HTML, and never reach Django."""

import json
import socket
from typing import Any
from uuid import uuid4

import structlog
from gunicorn import util
from gunicorn.http import errors as http
from gunicorn.workers.gthread import ThreadWorker

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


class Worker(ThreadWorker):  # type: ignore[misc]  # gunicorn is not typed
    """Threads, as gunicorn's own."""

    def handle_error(self, req: Any, client: socket.socket, addr: Any, exc: BaseException) -> None:
        """Answer in the error envelope and log which error it was, without what was sent: a header may be a key."""
        message = "" if isinstance(exc, _OURS) else next((text for kind, text in _MESSAGES if isinstance(exc, kind)), "")
        with structlog.contextvars.bound_contextvars(request_id=str(uuid4())):
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

    request_id = structlog.contextvars.get_contextvars()["request_id"]
    status, code = ("400 Bad Request", "INVALID_REQUEST") if message else ("500 Internal Server Error", "INTERNAL_ERROR")
    body = json.dumps(errors.envelope(code, message or errors.OUR_OWN_WORDS[code])).encode()
    head = (
        f"HTTP/1.1 {status}\r\nConnection: close\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nX-Request-ID: {request_id}\r\n\r\n"
    )
    return head.encode() + body
