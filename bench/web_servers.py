"""Web servers able to run Roundhouse, one process per server: their speed, and two abilities required by Roundhouse."""

import contextlib
import json
import math
import os
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import requests
from django.core.management.base import CommandError

from bench import admit, registry, servers
from bench.figures import percentile
from bench.servers import Server
from common.settings import settings
from engines.models import Operation

SHIPPED = "gunicorn, config.web.server"
UNREADABLE = b"GET /health HTTP/1.1\r\nHost: localhost\r\nno header at all\r\n\r\n"
WSGI = "config.web.wsgi:application"
FEW = 2  # connections: too few to queue behind one another


@dataclass(frozen=True)
class Figures:
    """Figures of a server.

    `rate`: admits per second. `alone`, `beside`: seconds of every admit on FEW connections, without and with waiting provisions.
    `raw_path`, `envelope`: results of `_gives_raw_path` and `_answers_in_envelope`.
    """

    rate: float
    alone: list[float]
    beside: list[float]
    raw_path: bool
    envelope: bool


def commands(port: int) -> dict[str, list[str]]:
    """Command lines by server name, with as many threads as the shipped server has for admits."""
    threads = str(settings.ENV.web_threads)
    gunicorn = [sys.executable, "-m", "gunicorn", "config.web.wsgi", "--bind", f"127.0.0.1:{port}", "--no-control-socket"]
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
            "config.web.wsgi:application",
        ],
    }


def _others() -> Path:
    """The folder of the servers outside our requirements. Raises CommandError if the folder does not exist."""
    folder = Path(settings.BASE_DIR) / ".venv-bench" / "servers"
    if not folder.exists():
        raise CommandError("the servers to compare with are not installed: run `make bench-venv`")
    return folder


def measure(seconds: float, connections: int, users: int, provisions: int, log: IO[bytes]) -> Iterator[tuple[str, Figures]]:
    """Measure the servers in sequence. No Celery worker runs, and thus provisions wait until their clients give up."""
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
    raw_path, envelope = _gives_raw_path(server, key), _answers_in_envelope(server)
    full = admit.load(server, key, seconds=seconds, connections=connections, users=users)
    alone = admit.load(server, key, seconds=seconds, connections=FEW, users=users)
    with ThreadPoolExecutor(provisions) as clients:
        for n in range(provisions):
            clients.submit(_provision, server.url, key, n, 2 * seconds)
        try:
            beside = admit.load(server, key, seconds=seconds, connections=FEW, users=users).seconds
        except CommandError:  # no answer at all: the only worker of the server waits
            beside = [math.inf]
    return Figures(full.rate, alone.seconds, beside, raw_path, envelope)


def _provision(url: str, key: str, number: int, wait_s: float) -> None:
    headers = {"X-Platform-Key": key, "Prefer": f"wait={wait_s:.0f}"}
    with contextlib.suppress(requests.RequestException):
        requests.post(f"{url}/engines/provision", json={"user_id": f"slow-{number}"}, headers=headers, timeout=wait_s)


def _gives_raw_path(server: Server, key: str) -> bool:
    """Whether the server keeps an encoded slash (`%2F`) in a user id apart from the slashes of the path."""
    answer = requests.get(f"{server.url}/engines/a%2Fb", headers={"X-Platform-Key": key}, timeout=30)
    return bool(answer.json()["error"]["code"] == "ENGINE_NOT_FOUND")


def _answers_in_envelope(server: Server) -> bool:
    """Whether the server answers an unreadable request with the error envelope."""
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
    times = (percentile(found.alone, 0.99), percentile(found.beside, 0.99), max(found.beside))
    cells = "".join(f"{seconds * 1000:14.1f}" for seconds in times)
    raw_path, envelope = ("yes" if it_does else "no" for it_does in (found.raw_path, found.envelope))
    return f"{name:24} {found.rate:9.0f}{cells}  {raw_path:8}  {envelope}"


HEAD = f"{'':24}  admits/s        p99 ms    p99 beside slowest beside  raw path  envelope"
