"""Web servers as processes of a benchmark, pinned to a processor apart from the clients' processors."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

import psutil
from django.core.management.base import CommandError

UP_S = 30.0
STOP_S = 10.0


@dataclass(frozen=True)
class Server:
    """A server listening on `port` of 127.0.0.1."""

    name: str
    port: int
    process: "subprocess.Popen[bytes]"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def cpu_s(self) -> float:
        """Processor time used so far by the server and its workers, in seconds."""
        parent = psutil.Process(self.process.pid)
        used = [process.cpu_times() for process in (parent, *parent.children(recursive=True))]
        return sum(times.user + times.system for times in used)


def free_port() -> int:
    """A port without a listener at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def processors() -> tuple[set[int], set[int]]:
    """The processor of the server under test, and the clients' processors; equal on a machine with a single processor."""
    usable = sorted(os.sched_getaffinity(0))
    return {usable[-1]}, set(usable[:-1]) or set(usable)


@contextmanager
def running(name: str, argv: list[str], port: int, environment: Mapping[str, str], log: IO[bytes]) -> Iterator[Server]:
    """Start the command line `argv`, yield once `port` accepts connections, and stop the server. Raises CommandError."""
    pinned, _ = processors()
    process = subprocess.Popen(
        argv, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        preexec_fn=lambda: os.sched_setaffinity(0, pinned),
    )  # fmt: skip
    try:
        _wait(name, process, port)
        yield Server(name, port, process)
    finally:
        stop(process)


def stop(process: "subprocess.Popen[bytes]") -> None:
    """End the process with SIGTERM; if it still runs after STOP_S seconds, SIGKILL its process group."""
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait(name: str, process: "subprocess.Popen[bytes]", port: int) -> None:
    deadline = time.monotonic() + UP_S
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if process.poll() is not None or time.monotonic() > deadline:
            raise CommandError(f"{name} does not start")
        time.sleep(0.1)
