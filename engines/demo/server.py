"""HTTP for the engine: `GET /health`, `GET /counter`, `POST /execute`, and `POST /faults` where faults are switched on.

The answer to `/health` has a proof in `X-Engine-Proof` if the request has a nonce in `X-Engine-Nonce`.

All endpoints but `/health` need the engine's key in `X-Engine-Key`. Errors are `{"error": {"code": "...", "message": "..."}}`.
"""

import json
import re
import socketserver
import sqlite3
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

from .engine import Engine, Unready
from .faults import Fault, WrongFault

MAX_BODY = 1_048_576  # bytes
MAX_TOKENS = 10_000
NONCE = re.compile("[0-9a-f]{32}")
IDLE_S = 30  # for a read from a client, or a write to a client


class Refusal(Exception):
    """An answer other than success: HTTP status, code and message."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class Server(ThreadingHTTPServer):
    """A thread per connection; threads never keep the process from ending."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        super().__init__((engine.settings.bind, engine.settings.port), Handler)

    def server_bind(self) -> None:
        """Bind without HTTPServer's look-up of the host's name, which may take seconds."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.engine.settings.bind, self.engine.settings.port


def listen(engine: Engine) -> Server:
    """Returns a server that already listens. Raises OSError, with EADDRINUSE if the port is taken."""
    return Server(engine)


class Handler(BaseHTTPRequestHandler):
    """A connection; `_health`, `_counter`, `_execute` and `_faults` are the endpoints."""

    protocol_version = "HTTP/1.1"
    server_version = "roundhouse-demo-engine"
    sys_version = ""
    timeout = IDLE_S
    _gone = False  # True: the client of a stream has closed the connection

    @property
    def engine(self) -> Engine:
        return cast(Server, self.server).engine

    def do_GET(self) -> None:
        with self.engine.answering():
            self._answer({"/health": self._health, "/counter": self._counter})

    def do_POST(self) -> None:
        with self.engine.answering():
            self._answer({"/execute": self._execute, "/faults": self._faults})

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Send refusals of the library (not HTTP, unknown method) in our own envelope, too."""
        self.close_connection = True
        self._send(code, {"error": {"code": "INVALID_REQUEST", "message": message or "The request is invalid."}})

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 the library's name
        """Write no log line per request, because probes alone would fill the log."""

    def _answer(self, endpoints: dict[str, Any]) -> None:
        path = self.path.partition("?")[0]
        try:
            body = self._read_body()
            if path != "/health" and not self.engine.is_key(self.headers.get("X-Engine-Key", "")):
                raise Refusal(401, "INVALID_ENGINE_KEY", "X-Engine-Key is missing or wrong.")
            if path not in endpoints:
                raise Refusal(404, "NOT_FOUND", f"There is no {self.command} {path}.")
            if path != "/faults":
                self._suffer()
            endpoints[path](body)
        except Refusal as refused:
            self._send(refused.status, {"error": {"code": refused.code, "message": str(refused)}})
        except Unready as unready:
            self._send(503, {"error": {"code": "UNAVAILABLE", "message": str(unready)}})
        except sqlite3.Error as error:
            self._send(500, {"error": {"code": "INTERNAL_ERROR", "message": str(error)}})
        except OSError:  # the client is gone
            self.close_connection = True

    def _health(self, body: bytes) -> None:
        nonce = self.headers.get("X-Engine-Nonce", "")
        proof = [("X-Engine-Proof", self.engine.prove(nonce))] if NONCE.fullmatch(nonce) else []
        self._send(*self.engine.health(), *proof)

    def _counter(self, body: bytes) -> None:
        self._send(200, {"counter": self.engine.count(), "boots": self.engine.boots})

    def _execute(self, body: bytes) -> None:
        """Stream the words of `input` back, `delay_s` seconds apart. The turn goes on even if the client is gone."""
        order = self._parse(body)
        delay_s = order.get("delay_s", 0)
        if isinstance(delay_s, bool) or not isinstance(delay_s, int | float) or not 0 <= delay_s <= 60:
            raise Refusal(400, "INVALID_REQUEST", "delay_s must be a number from 0 to 60.")
        echo = order.get("input", "")
        words = echo.split() if isinstance(echo, str) else [json.dumps(echo)]
        with self.engine.turn():
            self._open_stream()
            for word in words[:MAX_TOKENS]:
                self._send_event("token", {"text": word})
                time.sleep(delay_s)
            try:
                self._send_event("done", self.engine.finish_turn(echo))
            except sqlite3.Error as error:
                self._send_event("error", {"code": "INTERNAL_ERROR", "message": str(error)})

    def _faults(self, body: bytes) -> None:
        if not self.engine.faults.enabled:
            raise Refusal(404, "NOT_FOUND", "Faults are switched off: DEMO_FAULTS is not 1.")
        try:
            fault = Fault.parse(self._parse(body))
        except WrongFault as wrong:
            raise Refusal(400, "INVALID_REQUEST", f"{wrong}.") from wrong
        self.engine.order(fault)
        self._send(200, {"mode": fault.mode, "boots": fault.boots})
        if not fault.boots:
            fault.exit_if_due()

    def _suffer(self) -> None:
        mode = self.engine.faults.mode
        if mode == "hang":
            self.engine.faults.outlast("hang")
        elif mode == "500":
            raise Refusal(500, "INTERNAL_ERROR", "The fault '500' is active.")

    def _read_body(self) -> bytes:
        length = self.headers.get("Content-Length", "0")
        if "Transfer-Encoding" in self.headers or not (length.isascii() and length.isdecimal()):
            self.close_connection = True
            raise Refusal(411, "INVALID_REQUEST", "The body needs a Content-Length.")
        if int(length) > MAX_BODY:
            self.close_connection = True
            raise Refusal(413, "INVALID_REQUEST", f"The body is longer than {MAX_BODY} bytes.")
        return self.rfile.read(int(length))

    def _parse(self, body: bytes) -> dict[str, Any]:
        try:
            parsed = json.loads(body or b"{}")
        except ValueError as error:
            raise Refusal(400, "INVALID_REQUEST", f"The body is not JSON: {error}.") from error
        if not isinstance(parsed, dict):
            raise Refusal(400, "INVALID_REQUEST", "The body must be a JSON object.")
        return parsed

    def _send(self, status: int, content: dict[str, Any], *headers: tuple[str, str]) -> None:
        encoded = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(encoded)))
        for name, value in headers:
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(encoded)

    def _open_stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Cache-Control", "no-store")
        self.send_header("Connection", "close")
        self.close_connection = True
        self.end_headers()

    def _send_event(self, event: str, data: dict[str, Any]) -> None:
        if self._gone:
            return
        try:
            self.wfile.write(f"event: {event}\ndata: {json.dumps(data)}\n\n".encode())
        except OSError:
            self._gone = True
