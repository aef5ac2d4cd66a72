"""Web servers that could run Roundhouse, one process each: how fast they are, and whether they give what it needs of a server."""

import contextlib
import json
import os
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import requests
from django.conf import settings
from django.core.management.base import CommandError

from engines.models import Operation
from fleet.bench import admit, registry, servers
from fleet.bench.figures import percentile
from fleet.bench.servers import Server

SHIPPED = "gunicorn, config.server"
UNREADABLE = b"GET /health HTTP/1.1\r\nHost: localhost\r\nno header at all\r\n\r\n"
WSGI = "config.wsgi:application"
FEW = 2  # connections; what they wait for is not each other


@dataclass(frozen=True)
class Figures:
    """What a server does: admits per second, their p99 in seconds with few of them, alone and beside waiting provisions."""

    rate: float
    alone: float
    beside: float
    raw_path: bool
    envelope: bool


def commands(port: int) -> dict[str, list[str]]:
    """Command lines, by name; as many threads as the shipped server has for admits."""
    threads = str(settings.ENV.web_threads)
    gunicorn = [sys.executable, "-m", "gunicorn", "config.wsgi", "--bind", f"127.0.0.1:{port}", "--no-control-socket"]
    granian = ["--interface", "wsgi", "--host", "127.0.0.1", "--port", str(port), "--blocking-threads", threads]
    return {
        SHIPPED: [sys.executable, "-m", "config.processes", "exec", "web"],
        "gunicorn gthread": [*gunicorn, "--worker-class", "gthread", "--threads", threads],
        "gunicorn sync": [*gunicorn, "--worker-class", "sync"],
        "granian": [sys.executable, "-m", "granian", *granian, "--no-access-log", WSGI],
        "waitress": [
            sys.executable,
            "-m",
            "waitress",
            f"--listen=127.0.0.1:{port}",
            f"--threads={threads}",
            "config.wsgi:application",
        ],
    }


def _others() -> Path:
    """The folder of the servers that are none of our requirements. Raises CommandError."""
    folder = Path(settings.BASE_DIR) / ".venv-bench" / "servers"
    if not folder.exists():
        raise CommandError("the servers to compare with are not installed: run `make bench-venv`")
    return folder


def measure(seconds: float, connections: int, users: int, provisions: int, log: IO[bytes]) -> Iterator[tuple[str, Figures]]:
    """Each server in turn. No worker runs: what is provisioned is waited for."""
    path = f"{_others()}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    for name in commands(0):
        port = servers.free_port()
        environment = {"ORCH_PORT": str(port), "ORCH_WEB_WORKERS": "1", "ORCH_PROCESS": "web", "PYTHONPATH": path}
        with registry.product(admit.POLICY, users) as (product, key):
            try:
                with servers.running(name, commands(port)[name], port, environment, log) as server:
                    yield name, _measure(server, key, seconds, connections, users, provisions)
            finally:
                Operation.objects.filter(engine__product=product).delete()


def _measure(server: Server, key: str, seconds: float, connections: int, users: int, provisions: int) -> Figures:
    full = admit.load(server, key, seconds=seconds, connections=connections, users=users)
    alone = admit.load(server, key, seconds=seconds, connections=FEW, users=users)
    threads = [
        threading.Thread(target=_provision, args=(server.url, key, n, 2 * seconds), daemon=True) for n in range(provisions)
    ]
    for thread in threads:
        thread.start()
    beside = admit.load(server, key, seconds=seconds, connections=FEW, users=users)
    for thread in threads:
        thread.join()
    p99 = [percentile(taken.seconds, 0.99) for taken in (alone, beside)]
    return Figures(full.rate, p99[0], p99[1], _gives_raw_path(server, key), _answers_in_envelope(server))


def _provision(url: str, key: str, number: int, wait_s: float) -> None:
    headers = {"X-Platform-Key": key, "Prefer": f"wait={wait_s:.0f}"}
    with contextlib.suppress(requests.RequestException):
        requests.post(f"{url}/engines/provision", json={"user_id": f"slow-{number}"}, headers=headers, timeout=120)


def _gives_raw_path(server: Server, key: str) -> bool:
    """Whether a slash in a user's id is told from one in the path."""
    answer = requests.get(f"{server.url}/engines/a%2Fb", headers={"X-Platform-Key": key}, timeout=30)
    return bool(answer.json()["error"]["code"] == "ENGINE_NOT_FOUND")


def _answers_in_envelope(server: Server) -> bool:
    """Whether a request that cannot be read is answered with the error envelope."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(UNREADABLE)
        client.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: client.recv(4096), b""))
    try:
        return bool(json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "INVALID_REQUEST")
    except (ValueError, KeyError, TypeError):
        return False


def line(name: str, found: Figures) -> str:
    """A line of the table."""
    yes = {True: "yes", False: "no"}
    p99 = f"{found.alone * 1000:9.1f} {found.beside * 1000:14.1f}"
    return f"{name:24} {found.rate:10.0f} {p99}   {yes[found.raw_path]:8} {yes[found.envelope]}"


HEAD = f"{'':24} admits/s    p99 ms  p99 ms beside   raw path envelope"
