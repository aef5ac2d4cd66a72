"""The server's own answers, to requests that never reach Django: JSON, as all answers of the API."""

import json
from uuid import uuid4

import structlog
from gunicorn.http import errors as http

from common import context
from config.web.framing import Unreadable

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
    ((http.ParseException, http.NoMoreData), "The HTTP request cannot be read; check its first line and its headers."),
)
_REASONS = {400: "Bad Request", 408: "Request Timeout", 500: "Internal Server Error", 503: "Service Unavailable"}
_CODES = {400: "INVALID_REQUEST", 408: "INVALID_REQUEST", 500: "INTERNAL_ERROR", 503: "UNAVAILABLE"}


def of_error(error: BaseException) -> bytes:
    """The answer to a request that raised `error`: 400 with what is wrong with the request, or 500 if the fault is ours.

    The log line has no bytes of the request, because a header may contain a key.
    """
    with context.of_call(_new_call()):
        message = _message(error)
        if message:
            log.info("request_unreadable", error=type(error).__name__)
            return _answer(400, message)
        log.error("request_failed", exc_info=error)
        return _answer(500, "")


def of_limit(status: int, message: str, event: str, **fields: object) -> bytes:
    """The answer to a client that goes beyond a limit of the server; the log line says who it was."""
    with context.of_call(_new_call()):
        log.info(event, **fields)
        return _answer(status, message)


def _new_call() -> context.Call:
    call_id = uuid4()
    return context.Call(call_id, str(call_id))


def _message(error: BaseException) -> str:
    """The fault of the request in words; empty if the fault is ours."""
    if isinstance(error, Unreadable):
        return str(error)
    return "" if isinstance(error, _OURS) else next((text for kind, text in _MESSAGES if isinstance(error, kind)), "")


def _answer(status: int, message: str) -> bytes:
    """The bytes of an answer that ends its connection; without a message, the usual one of the status."""
    from fleet import errors  # here: gunicorn loads the module before Django is set up

    call, code = context.current(), _CODES[status]
    body = json.dumps(errors.envelope(code, message or errors.OUR_OWN_WORDS[code])).encode()
    head = (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\nConnection: close\r\nContent-Type: application/json\r\n"
        f"Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nContent-Length: {len(body)}\r\n"
        f"X-Request-ID: {call.request_id}\r\nX-Call-ID: {call.call_id}\r\n\r\n"
    )
    return head.encode() + body
