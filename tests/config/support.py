"""What the tests of this folder share: waiting, finding a home's processes, running commands in a home."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import psutil

from config.home import BASE_DIR


def wait_until(condition: Callable[[], object], timeout: float = 30) -> object:
    """The first true value of `condition()`; fails after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not true within {timeout} s: {condition}"
        time.sleep(0.05)
    return value


def environment(home: Path, **changes: str) -> dict[str, str]:
    """A stranger's environment: nothing of ours but the home (the tests' own servers must not leak in)."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ORCH_") or name == "ORCH_PG_BIN"}
    return {**kept, "ORCH_HOME": str(home), **changes}


def manage(home: Path, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=BASE_DIR, env=environment(home, **changes), capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def living(home: Path) -> list[str]:
    """Command lines of the processes that belong to `home`, by what they were started with."""
    places = {str(home), str((home / "postgres").resolve())}
    found = []
    for process in psutil.process_iter():
        try:
            words = [*process.cmdline(), *process.environ().values()]
            if process.status() != psutil.STATUS_ZOMBIE and any(place in word for place in places for word in words):
                found.append(" ".join(process.cmdline()))
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


class Run:
    """A `make run` in a process group of its own, as in a terminal. Its output goes to a file."""

    def __init__(self, home: Path, port: int) -> None:
        self.home, self.port = home, port
        self._file = home.parent / f"{home.name}.out"
        make = shutil.which("make") or "make"
        with self._file.open("w") as output:
            self.make = subprocess.Popen(
                [make, "--no-print-directory", "run", f"PORT={port}", f"ORCH_HOME={home}"],
                cwd=BASE_DIR, env=environment(home), stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip

    @property
    def output(self) -> str:
        return self._file.read_text()

    @property
    def launcher(self) -> psutil.Process:
        children = psutil.Process(self.make.pid).children(recursive=True)
        return next(child for child in children if child.cmdline()[1:3] == ["-m", "config.launch"])

    def wait_for_banner(self, timeout: float = 90) -> None:
        def printed() -> bool:
            assert self.make.poll() is None, self.output
            return "-X DELETE" in self.output

        wait_until(printed, timeout)

    def tour(self) -> str:
        """The curl lines of the banner."""
        return "\n".join(line for line in self.output.split("destroy the engine:")[1].splitlines() if line.startswith("  "))

    def find(self, name: str) -> psutil.Process:
        """The process that the supervisor calls `name`; its children are its own affair."""
        for process in psutil.process_iter():
            try:
                environ, parent = process.environ(), process.parent()
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
            ours = environ.get("ORCH_HOME") == str(self.home) and environ.get("SUPERVISOR_PROCESS_NAME") == name
            if ours and parent and "supervisor.supervisord" in parent.cmdline():
                return process
        raise AssertionError(f"{name} does not run")

    def signal_group(self, number: signal.Signals) -> None:
        os.killpg(self.make.pid, number)

    def wait(self, timeout: float = 60) -> int:
        return self.make.wait(timeout)
