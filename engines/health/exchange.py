"""One request to an engine and its answer, read within bounds, because an engine runs untrusted code.

An answer can have no end in any part of HTTP: in interim answers, the status line, a header, the headers, a chunk's extension,
the chunks, the trailers or the body. An answer can also come in countless tiny parts. The bounds are thus on what every answer
consists of: bytes and parts. The caller's time-out bounds the time. Nothing is decompressed.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import h11

BYTES_CAP = 80 * 1024  # received in all, of whatever kind
HEAD_CAP = 16 * 1024  # of a head, a chunk's first line or a trailer that has not ended yet
BODY_CAP = 64 * 1024
# Pieces received, and interim answers, heads and parts of a body read from the pieces: a tiny part takes as long as a large one.
PARTS_CAP = 512

Headers = Sequence[tuple[bytes, bytes]]


@dataclass(frozen=True)
class Answer:
    """A final answer; names of headers are in lower case. A `status` outside of 200 to 299 comes without the body, unread."""

    status: int
    body: bytes
    headers: Headers = ()


class Unreadable(Exception):
    """No answer could be read. `str()` is the cause: "connect_error", "too_large", "too_many_parts" or "not_http"."""


async def ask(host: str, port: int, name: str, *headers: tuple[str, str]) -> Answer:
    """The answer to `GET /health` on a connection of its own; `name` goes into `Host`, `headers` are further headers.

    Raises OSError, Unreadable.
    """
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[Answer | Unreadable] = loop.create_future()
    transport, _ = await loop.create_connection(lambda: _Exchange(outcome, name, headers), host, port)
    try:
        found = await outcome
    finally:
        transport.abort()
    if isinstance(found, Unreadable):
        raise found
    return found


class _Exchange(asyncio.Protocol):
    """Sends the request, and sets `outcome` as soon as the outcome is certain: nothing further is received then."""

    def __init__(self, outcome: "asyncio.Future[Answer | Unreadable]", name: str, further: Sequence[tuple[str, str]]) -> None:
        self._outcome = outcome
        usual = [("Host", name), ("User-Agent", "roundhouse"), ("Accept", "application/json"), ("Connection", "close")]
        self._request = h11.Request(method="GET", target="/health", headers=[*usual, *further])
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_CAP)
        self._bytes = self._parts = 0
        self._final = Answer(0, b"")
        self._body = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._http.send(self._request) or b"")
        self._http.send(h11.EndOfMessage())

    def data_received(self, data: bytes) -> None:
        room = BYTES_CAP - self._bytes
        self._bytes += len(data)
        self._read(data[:room], "not_http")
        if len(data) > room:
            self._fail("too_large")

    def eof_received(self) -> None:
        self._read(b"", "connect_error")  # to the parser, b"" is the end of the connection, where a body may end, too

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail("connect_error")

    def _read(self, data: bytes, cause: str) -> None:
        """Read the events in a piece; `cause` is the failure's cause if the piece breaks HTTP."""
        self._count()
        try:
            self._http.receive_data(data)
            while not self._outcome.done() and (event := self._http.next_event()) is not h11.NEED_DATA:
                self._take(event)
        except h11.RemoteProtocolError as error:
            self._fail("too_large" if error.error_status_hint == 431 else cause)

    def _take(self, event: object) -> None:
        self._count()
        match event:
            case h11.Response(status_code=status) if not 200 <= status < 300:
                self._end(Answer(status, b""))
            case h11.Response(status_code=status, headers=headers):
                self._final = Answer(status, b"", list(headers))
                if _announced(event) > BODY_CAP:
                    self._fail("too_large")
            case h11.Data(data=data):
                self._body += data
                if len(self._body) > BODY_CAP:
                    self._fail("too_large")
            case h11.EndOfMessage():
                self._end(replace(self._final, body=bytes(self._body)))

    def _count(self) -> None:
        self._parts += 1
        if self._parts > PARTS_CAP:
            self._fail("too_many_parts")

    def _fail(self, cause: str) -> None:
        self._end(Unreadable(cause))

    def _end(self, found: Answer | Unreadable) -> None:
        if not self._outcome.done():
            self._outcome.set_result(found)
            self._transport.abort()


def _announced(response: h11.Response) -> int:
    """The `Content-Length`, which the parser has checked; 0 without one."""
    return next((int(value) for name, value in response.headers if name == b"content-length"), 0)
