"""gunicorn's worker with a loop of its own: a connection gets a thread once a whole request has come, and only then.

A single thread runs the loop: it accepts connections, takes requests in, sends what a client has not taken at once, and closes.
The loop never waits for one client. So a client that sends slowly, reads slowly or never closes costs memory within its share
(`config.web.shares`), and time of nobody else.

A request takes these steps:

1. `on_readable` takes in bytes until the request is whole (`config.web.framing`), or refuses it (`config.web.refusals`).
2. `config.web.pools` chooses a thread, which parses the request and runs Django (`handle`).
3. `finish_request` sends what is left of the answer, and then takes in the next request, or closes.
"""

import errno
import resource
import selectors
import socket
import sys
import time
from functools import partial
from typing import Any

from gunicorn import http
from gunicorn.http.errors import NoMoreData
from gunicorn.workers.gthread import ThreadWorker

from common import ip_addresses
from common.settings import settings
from config.web import connections, framing, refusals, shares
from config.web.connections import Connection, Phase
from config.web.framing import Stage
from config.web.pools import Pools
from config.web.proxies import is_trusted

# Seconds after which a computing thread yields: Python's own 5 ms add up when a hot-path thread waits behind ten threads.
SWITCH_S = 0.001
SWEEP_S = 0.5  # between two looks for connections that have waited long enough
NOTED_S = 60.0  # between two log lines about an address with too many connections
_FILES = 512  # file descriptors for all else: the database, Valkey, static files
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Worker(ThreadWorker):  # type: ignore[misc]  # gunicorn is not typed
    """gunicorn's threaded worker, with our loop and two pools of threads."""

    def get_thread_pool(self) -> Pools:
        sys.setswitchinterval(SWITCH_S)
        return Pools(self.cfg.threads)

    def init_process(self) -> None:
        _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
        self.worker_connections = min(self.cfg.worker_connections, files - _FILES)
        self.connections: set[Connection] = set()
        self.shares = shares.Shares(settings.ENV.web_connections_per_address, is_trusted)
        self._swept_at, self._noted_at = 0.0, dict[str, float]()
        super().init_process()

    # -- opening and closing ---------------------------------------------------------------------------------------------

    def accept(self, listener: socket.socket) -> None:
        """Take a new connection, unless its address has too many."""
        try:
            client, peer = listener.accept()
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.ECONNABORTED, errno.EMFILE, errno.ENFILE):
                raise
            return
        conn = Connection(client, peer, listener.getsockname(), ip_addresses.owner(peer[0]), self.cfg.keepalive)
        if not self.shares.enter(conn.address):
            self._turn_away(conn)
            return
        self.nr_conns += 1
        self.connections.add(conn)
        self._watch(conn, selectors.EVENT_READ)
        self.on_readable(conn)

    def _turn_away(self, conn: Connection) -> None:
        """Close at once: the address has as many connections as it may have. Log it once a minute."""
        now, message = time.monotonic(), f"More than {settings.ENV.web_connections_per_address} connections from one address."
        if self._noted_at.get(conn.address, -NOTED_S) + NOTED_S <= now:
            self._noted_at = {address: at for address, at in self._noted_at.items() if at + NOTED_S > now} | {conn.address: now}
            conn.sock.sendall(refusals.of_limit(503, f"{message} Close some.", "connections_refused", address=conn.client[0]))
            _flush(conn)
        conn.socket.close()

    def close(self, conn: Connection) -> None:
        if conn not in self.connections:
            return
        self.connections.remove(conn)
        self._watch(conn, 0)
        conn.socket.close()
        self.nr_conns -= 1
        self.shares.leave(conn.address)
        self.shares.hold(conn.address, 0, conn.held)

    def linger(self, conn: Connection) -> None:
        """Close after the client has: closing while bytes of the client are unread would take the answer from the client."""
        try:
            conn.socket.shutdown(socket.SHUT_WR)
        except OSError:
            conn.ended = True
        if conn.ended:
            self.close(conn)
            return
        conn.received.clear()
        conn.enter(Phase.LINGERING)
        self._watch(conn, selectors.EVENT_READ)

    def murder_keepalived(self, force: bool = False) -> None:
        """Close connections that have waited long enough; gunicorn calls this after every turn of its loop."""
        now = time.monotonic()
        if now < self._swept_at + SWEEP_S and not force:
            return
        self._swept_at = now
        for conn in [conn for conn in self.connections if self._is_over(conn, now) or (force and conn.phase is Phase.REQUEST)]:
            self._give_up(conn)

    def _is_over(self, conn: Connection, now: float) -> bool:
        """Whether the connection has waited long enough; a server that stops has less patience."""
        if self.alive or conn.phase is Phase.THREAD:
            return now >= conn.deadline()
        is_silent = conn.phase is Phase.REQUEST and conn.frame.stage is Stage.NOTHING
        patience_s = connections.LINGER_S if is_silent else connections.GRACE_S
        return now >= min(conn.deadline(), conn.since + patience_s)

    def _give_up(self, conn: Connection) -> None:
        if conn.phase is not Phase.REQUEST or conn.frame.stage is Stage.NOTHING:
            self.close(conn)
            return
        part = "head" if conn.frame.stage is Stage.HEAD else "body"
        message = f"The {part} of the request came too slowly; send the request again, without a pause."
        self._refuse(conn, refusals.of_limit(408, message, "request_too_slow", address=conn.client[0], part=part))

    # -- taking a request in ---------------------------------------------------------------------------------------------

    def on_readable(self, conn: Connection) -> None:
        """Take in what the client has sent."""
        count = conn.receive()
        if conn.phase is Phase.LINGERING:
            conn.drained += count
            conn.received.clear()
            if conn.ended or conn.drained > connections.LINGER_BYTES:
                self.close(conn)
        elif conn.phase is Phase.THREAD:
            if conn.ended or len(conn.received) > connections.READ_AHEAD:
                self._watch(conn, 0)
        elif count or conn.ended:
            self.take_in(conn)

    def take_in(self, conn: Connection) -> None:
        """Hand the connection to a thread if its request is whole; otherwise leave it waiting, or refuse the request."""
        try:
            stage = conn.look()
        except framing.Unreadable as error:
            self._refuse(conn, refusals.of_error(error))
            return
        if not conn.weigh(self.shares):
            message = "Too many bytes of requests and answers are waiting; try again in a few seconds."
            self._refuse(conn, refusals.of_limit(503, message, "bytes_refused", address=conn.client[0]))
        elif stage is Stage.WHOLE:
            conn.take_request()
            self.enqueue_req(conn)
        elif conn.ended:
            self._part(conn, stage)
        elif stage is Stage.BODY and not conn.promised:
            self._promise(conn)

    def _part(self, conn: Connection, stage: Stage) -> None:
        """Close, or answer a client that has ended in the middle of a request and may still read."""
        if stage is Stage.NOTHING:
            self.close(conn)
        else:
            self._refuse(conn, refusals.of_error(framing.Unreadable(f"The request ended in the middle of its {stage.value}.")))

    def _promise(self, conn: Connection) -> None:
        conn.promised = True
        if framing.wants_continue(bytes(conn.received[: conn.frame.head])):
            conn.sock.sendall(_CONTINUE)
            if not _flush(conn):
                self.close(conn)

    def _refuse(self, conn: Connection, answer: bytes) -> None:
        conn.received.clear()
        conn.sock.sendall(answer)
        conn.keeps = False
        self.send(conn)

    # -- answering -------------------------------------------------------------------------------------------------------

    def handle(self, conn: Connection) -> bool:
        """Answer the connection's request; return whether another request may follow. Runs in a thread of the pools."""
        try:
            request = next(http.get_parser(self.cfg, [conn.request], conn.client))
            request._expected_100_continue = False  # the loop has answered this already
            keeps = bool(self.handle_request(request, conn))
        except StopIteration:
            keeps = False
        except Exception as error:  # noqa: BLE001 (any error gets an answer)
            keeps = False
            if isinstance(error, OSError) and not isinstance(error, NoMoreData):
                conn.sock.unsent.clear()  # the client is gone, or takes the answer too slowly
            else:
                conn.sock.sendall(refusals.of_error(error))
        _flush(conn)
        return keeps

    def finish_request(self, conn: Connection, future: Any) -> None:
        """Go on with a connection whose request has been answered, in the loop's own thread."""
        conn.request = b""
        conn.keeps = not future.cancelled() and future.exception() is None and future.result()
        self.send(conn)

    def send(self, conn: Connection) -> None:
        """Send what is left of the answer; then take in the next request, or close."""
        sent = _flush(conn)
        if sent is None or not conn.weigh(self.shares):
            self.close(conn)
        elif not sent:
            self._send_later(conn)
        elif conn.keeps:
            self._next(conn)
        else:
            self.linger(conn)

    def _send_later(self, conn: Connection) -> None:
        if conn.phase is not Phase.SENDING:
            conn.enter(Phase.SENDING)
            self._watch(conn, selectors.EVENT_WRITE)

    def _next(self, conn: Connection) -> None:
        conn.enter(Phase.REQUEST)
        conn.sock.sent = 0
        self._watch(conn, selectors.EVENT_READ)
        if conn.received or conn.ended:
            self.take_in(conn)

    # -- events ----------------------------------------------------------------------------------------------------------

    def _watch(self, conn: Connection, events: int) -> None:
        """Wait for these events of the connection's socket, and for no others; 0 for none."""
        if events == conn.events:
            return
        if not conn.events:
            self.poller.register(conn.socket, events, partial(self._on_event, conn))
        elif events:
            self.poller.modify(conn.socket, events, partial(self._on_event, conn))
        else:
            self.poller.unregister(conn.socket)
        conn.events = events

    def _on_event(self, conn: Connection, _socket: Any) -> None:
        if conn.phase is Phase.SENDING:
            self.send(conn)
        else:
            self.on_readable(conn)


def _flush(conn: Connection) -> bool | None:
    """Send what the client takes now; return whether all is sent, and None if the client is gone."""
    try:
        return conn.sock.flush()
    except OSError:
        return None
