"""The port of a running instance: a listening socket on the server's event loop, with just enough HTTP for probes."""

import asyncio
import errno
import json
import re
import socket
from collections.abc import Callable, Iterator
from http.client import responses

from engines import proof
from engines.backends.base import BackendError, PortTaken
from engines.backends.memory.behaviour import Behaviour

NONCE_LINE = re.compile(rb"^%s: *(\S+)\r$" % proof.NONCE.encode(), re.IGNORECASE | re.MULTILINE)
LONGEST_HEAD = 65_536  # bytes of a request
BLOCK = 65_536  # bytes that are written together of an endless answer
BUSY_S = 0.002  # until a client that has not read the last block is offered the next
LINGER_S = 5.0  # from an answer until our end breaks the connection, if the client has not closed it


class Door:
    """Listens from its creation until `close`; calls `behaviour` anew for every request. `key_hash`: for proofs."""

    def __init__(self, address: str, port: int, key_hash: str, behaviour: Callable[[], Behaviour]) -> None:
        """Raises PortTaken, BackendError."""
        self.key_hash = key_hash
        self.behaviour = behaviour
        self.connections: set[asyncio.Transport] = set()
        self.is_open = True
        self._loop = asyncio.get_running_loop()
        self._arriving: set[asyncio.Task[object]] = set()
        self._socket = _listen(address, port)
        self._loop.add_reader(self._socket, self._accept)

    def _accept(self) -> None:
        try:
            connection, _ = self._socket.accept()
        except (BlockingIOError, ConnectionError):  # the caller closed the connection before the accept
            return
        task = self._loop.create_task(self._loop.connect_accepted_socket(lambda: _Connection(self), connection))
        self._arriving.add(task)
        task.add_done_callback(self._arriving.discard)

    def close(self) -> None:
        """Stop listening and break all connections, as at the end of a process."""
        self.is_open = False
        self._loop.remove_reader(self._socket)
        self._socket.close()
        for connection in list(self.connections):
            connection.abort()


def _listen(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        listener = socket.create_server((address, port), family=family, backlog=128)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise PortTaken(f"port {port} is taken") from error
        raise BackendError(f"cannot listen on port {port} of {address}: {error.strerror}") from error
    listener.setblocking(False)
    return listener


class _Connection(asyncio.Protocol):
    """A connection for a single request and its answer."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._received = b""
        self._is_answering = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._door.connections.add(transport)
        if not self._door.is_open:  # the door was closed after the accept
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._door.connections.discard(self._transport)

    def data_received(self, data: bytes) -> None:
        if self._is_answering:  # ignore a body, or a second request
            return
        self._received += data
        if b"\r\n\r\n" in self._received:
            self._answer(*self._received.partition(b"\r\n")[::2])
        elif len(self._received) > LONGEST_HEAD:
            self._transport.abort()

    def _answer(self, request_line: bytes, headers: bytes) -> None:
        self._is_answering = True
        behaviour = self._door.behaviour()
        if behaviour.hangs:
            return
        if behaviour.is_raw:
            self._transport.write(behaviour.begin)
            self._repeat(behaviour)
            return
        method, _, rest = request_line.decode("latin-1").partition(" ")
        path = rest.partition(" ")[0].partition("?")[0]
        if (method, path) == ("GET", "/health"):
            shown = self._proof(behaviour, headers)
            self._send_later(behaviour.delay_s, behaviour.status, behaviour.body, *shown)
        else:
            error = {"code": "NOT_FOUND", "message": f"There is no {method} {path}."}
            self._send_later(behaviour.delay_s, 404, json.dumps({"error": error}).encode())

    def _proof(self, behaviour: Behaviour, headers: bytes) -> Iterator[str]:
        """The header with the engine's proof, if the request has a nonce."""
        asked = NONCE_LINE.search(headers)
        if asked is not None and behaviour.proof != "none":
            shown = proof.prove(self._door.key_hash, asked[1].decode("latin-1"))
            yield f"{proof.PROOF}: {shown if behaviour.proof == 'right' else shown[::-1]}"

    def _repeat(self, behaviour: Behaviour) -> None:
        """Send `repeat` until the client closes the connection; blocks of it when there is no pause."""
        if self._transport.is_closing() or not behaviour.repeat:
            return
        if not self._transport.get_write_buffer_size():
            times = 1 if behaviour.pause_s else max(1, BLOCK // len(behaviour.repeat))
            self._transport.write(behaviour.repeat * times)
        asyncio.get_running_loop().call_later(behaviour.pause_s or BUSY_S, self._repeat, behaviour)

    def _send_later(self, delay_s: float, status: int, body: bytes, *headers: str) -> None:
        asyncio.get_running_loop().call_later(delay_s, self._send, status, body, *headers)

    def _send(self, status: int, body: bytes, *headers: str) -> None:
        """Send the answer, and let the client close the connection.

        If our side closed first, a client that still sends a body would lose the answer.
        """
        if self._transport.is_closing():
            return
        head = (
            f"HTTP/1.1 {status} {responses.get(status, '')}",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            "Connection: close",
            *headers,
        )
        self._transport.write("\r\n".join(head).encode() + b"\r\n\r\n" + body)
        self._transport.write_eof()
        asyncio.get_running_loop().call_later(LINGER_S, self._transport.abort)
