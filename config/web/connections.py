"""A client's connection: the bytes received, the bytes of the answer not sent yet, and how long the connection may wait."""

import select
import socket
import time
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from config.web import shares
from config.web.framing import Frame, Stage

HEAD_S = 5.0  # from the first byte of a request to the end of its head
BODY_S = 60.0  # from the end of the head to the end of the body, at most
GRACE_S = 5.0  # for which a body may wait without a byte
RATE = 10 * 1024  # bytes per second, after the grace
SEND_S = 60.0  # for sending an answer, at most
LINGER_S = 2.0  # after an answer that ends the connection, for the client to read the answer and close
LINGER_BYTES = 64 * 1024  # that a client may still send before it reads the answer
READ_AHEAD = 64 * 1024  # bytes of further requests, taken in while a request is answered
UNSENT = 4 * 1024 * 1024  # bytes of an answer that wait in memory; a thread that makes more waits for the client
_PIECE = 64 * 1024  # bytes per read


class Phase(Enum):
    """What the connection waits for."""

    REQUEST = "request"  # more bytes of the client
    THREAD = "thread"  # a thread that answers
    SENDING = "sending"  # the client to take the answer
    LINGERING = "lingering"  # the client to close


@dataclass(eq=False)
class Connection:
    """A connection, in the thread that accepts connections; in `Phase.THREAD`, `answer` belongs to the answering thread."""

    socket: socket.socket
    client: Any  # address as the socket module gives it
    server: Any
    address: str  # that shares are counted for
    keepalive_s: float
    phase: Phase = Phase.REQUEST
    since: float = field(default_factory=time.monotonic)
    received: bytearray = field(default_factory=bytearray)
    request: bytes = b""
    frame: Frame = field(default_factory=Frame)
    held: int = 0  # bytes noted with `shares`
    ended: bool = False  # whether the client sends no more
    keeps: bool = False  # whether another request may follow the answer
    drained: int = 0  # bytes thrown away while lingering
    events: int = 0  # of the socket that the loop waits for
    promised: bool = False  # whether `100 Continue` was sent for this request

    def __post_init__(self) -> None:
        self.socket.setblocking(False)
        self.sock = Answer(self.socket)  # gunicorn's name for what it writes an answer to

    def receive(self) -> int:
        """Take in what has come; return the number of bytes. At the end of the client's bytes, `ended` is set."""
        try:
            piece = self.socket.recv(_PIECE)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:
            piece = b""
        self.ended = not piece
        self.received += piece
        return len(piece)

    def look(self) -> Stage:
        """How much of the next request has come; a new stage has its own time. Raises framing.Unreadable."""
        before = self.frame.stage
        stage = self.frame.grow(self.received)
        if stage is not before:
            self.since = time.monotonic()
        return stage

    def take_request(self) -> None:
        """Move the whole request out of the bytes received."""
        self.request = bytes(self.received[: self.frame.end])
        del self.received[: self.frame.end]
        self.frame, self.promised, self.phase = Frame(), False, Phase.THREAD

    def enter(self, phase: Phase) -> None:
        self.phase, self.since = phase, time.monotonic()

    def deadline(self) -> float:
        """The time, by the monotonic clock, at which the connection has waited long enough."""
        match self.phase, self.frame.stage:
            case Phase.THREAD, _:
                return float("inf")
            case Phase.SENDING, _:
                return self.since + min(SEND_S, GRACE_S + self.sock.sent / RATE)
            case Phase.LINGERING, _:
                return self.since + LINGER_S
            case _, Stage.NOTHING:
                return self.since + self.keepalive_s
            case _, Stage.HEAD:
                return self.since + HEAD_S
        return self.since + min(BODY_S, GRACE_S + (len(self.received) - self.frame.head) / RATE)

    def weigh(self, counted: shares.Shares) -> bool:
        """Note with `counted` the bytes that the connection holds; return False if they are more than allowed."""
        before, self.held = self.held, len(self.received) + len(self.request) + len(self.sock.unsent)
        return counted.hold(self.address, self.held, before)


class Answer:
    """What gunicorn takes for the client's socket: collects the bytes of an answer, and never waits for a client that reads."""

    def __init__(self, client: socket.socket) -> None:
        self._client = client
        self.unsent = bytearray()
        self.sent = 0  # bytes of this answer

    def sendall(self, piece: bytes) -> None:
        """Add a piece of the answer. Raises OSError if a long answer is not taken by the client in time."""
        self.unsent += piece
        if len(self.unsent) > UNSENT:
            self._wait_for_room()

    def flush(self) -> bool:
        """Send what the client takes now; return whether all is sent. Raises OSError when the client is gone."""
        while self.unsent:
            try:
                count = self._client.send(self.unsent)
            except (BlockingIOError, InterruptedError):
                return False
            self.sent += count
            del self.unsent[:count]
        return True

    def _wait_for_room(self) -> None:
        began, writable = time.monotonic(), select.poll()
        writable.register(self._client, select.POLLOUT)
        while not self.flush() and len(self.unsent) > UNSENT:
            left_s = began + min(SEND_S, GRACE_S + self.sent / RATE) - time.monotonic()
            if left_s <= 0 or not writable.poll(left_s * 1000):
                raise TimeoutError("The client takes the answer too slowly.")

    # gunicorn ends an answer that fails in its middle with these calls; the connection is closed later, in its own thread.

    def shutdown(self, how: int) -> None: ...

    def settimeout(self, seconds: float | None) -> None: ...

    def close(self) -> None: ...

    def recv(self, size: int) -> bytes:
        return b""
