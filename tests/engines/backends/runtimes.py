"""What the tests of this folder share: a backend to try, engines to try it with, and their HTTP."""

import hashlib
import http.client
import json
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from engines.backends.base import Backend, BackendError, Ref, Spec

IMAGE = "roundhouse-demo-engine:latest"
KEY = "sk-sept-test"
USER = "Zoë {@} 'a/b=c' \u202e🦊"  # whatever a product's user may be called, it is a label and nothing else
KEY_HASH = hashlib.sha256(KEY.encode()).hexdigest()


@dataclass
class Runtime:
    """A backend under test and how to look behind it."""

    backend: Backend
    missing_image: str
    has_volume: Callable[[UUID], bool]


def spec(engine_id: UUID | None = None, incarnation: int = 1, *, port: int | None = None, image: str = IMAGE, **env: str) -> Spec:
    """A spec for the demo engine, with faults switched on."""
    env = {"ENGINE_KEY_HASH": KEY_HASH, "DEMO_FAULTS": "1", **env}
    return Spec(Ref(engine_id or uuid4(), incarnation), "acme", image, port or free_port(), env, user_id=USER)


def try_(*verbs: Callable[[], None]) -> BackendError | None:
    """Call one after the other; the error that ended it."""
    try:
        for verb in verbs:
            verb()
    except BackendError as error:
        return error
    return None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def call(port: int, method: str, path: str, body: Any = None, *, key: str | None = KEY, timeout_s: float = 10) -> tuple[int, Any]:
    """Status and parsed JSON body of one request to an engine."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        connection.request(method, path, None if body is None else json.dumps(body), {"X-Engine-Key": key} if key else {})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def is_healthy(port: int) -> bool:
    try:
        return call(port, "GET", "/health", key=None)[0] == 200
    except (OSError, http.client.HTTPException):
        return False


def execute(port: int, body: Any, *, timeout_s: float = 10) -> list[tuple[str, Any]]:
    """Run a turn to its end; its events as (name, data)."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        connection.request("POST", "/execute", json.dumps(body), {"X-Engine-Key": KEY})
        response = connection.getresponse()
        assert response.status == 200, response.read()
        return parse_events(response.read().decode())
    finally:
        connection.close()


def parse_events(text: str) -> list[tuple[str, Any]]:
    fields = [dict(line.split(": ", 1) for line in block.split("\n")) for block in text.split("\n\n") if block]
    return [(field["event"], json.loads(field["data"])) for field in fields]


def processes_of(engine_id: UUID) -> list[int]:
    """Every process of this machine that was started as this engine, whatever the backend knows of it."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
    return [pid for pid in pids if _belongs(pid, str(engine_id).encode())]


def _belongs(pid: int, engine_id: bytes) -> bool:
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()  # empty for a zombie
    except OSError:
        return False
    return any(entry.startswith(b"SQLITE_DB_PATH=") and engine_id in entry for entry in environment.split(b"\0"))
