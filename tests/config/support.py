"""What the tests of this folder share: finding a home's processes, running commands in a home."""

import os
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import psutil

from config.local import supervision
from config.local.home import BASE_DIR
from tests import kinds, waiting


def environment(home: Path, **changes: str) -> dict[str, str]:
    """A stranger's environment: nothing of ours but the home (the tests' own servers must not leak in)."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ORCH_") or name == "ORCH_PG_BIN"}
    # Whether Docker answers on this machine is a question of test_choice's alone.
    return {**kept, "ORCH_HOME": str(home), "ORCH_ENGINE_BACKEND": "subprocess", **changes}


@kinds.needs("embedded")
def manage(home: Path, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    kinds.require("embedded")
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


def healthy(port: int, host: str = "127.0.0.1") -> bool:
    try:
        with urllib.request.urlopen(f"http://{host}:{port}/health", timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def stop_launchers(home: Path) -> None:
    """End a `make run` that a failed test has left behind."""
    for process in psutil.process_iter():
        try:
            ours = process.cmdline()[1:3] == ["-m", "config.local.launch"] and process.environ().get("ORCH_HOME") == str(home)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if ours:
            process.terminate()
            process.wait(60)


@kinds.needs("deployment")
class Run:
    """A `make run` in a process group of its own, as in a terminal. Its output goes to a file."""

    def __init__(self, home: Path, port: int, **changes: str) -> None:
        kinds.require("deployment")
        self.home, self.port = home, port
        self._file = home.parent / f"{home.name}.out"
        make = shutil.which("make") or "make"
        with self._file.open("w") as output:
            self.make = subprocess.Popen(
                [make, "--no-print-directory", "run", f"PORT={port}", f"ORCH_HOME={home}"],
                cwd=BASE_DIR, env=environment(home, **changes), stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip

    @property
    def output(self) -> str:
        return self._file.read_text()

    @property
    def launcher(self) -> psutil.Process:
        children = psutil.Process(self.make.pid).children(recursive=True)
        return next(child for child in children if child.cmdline()[1:3] == ["-m", "config.local.launch"])

    def wait_for_banner(self, timeout: float = 90) -> None:
        def printed() -> bool:
            assert self.make.poll() is None, self.output
            return "-X DELETE" in self.output

        waiting.until(printed, timeout, "the banner is printed")

    def tour(self) -> str:
        """The curl lines of the banner."""
        return "\n".join(line for line in self.output.split("destroy the engine:")[1].splitlines() if line.startswith("  "))

    def pid(self, name: str) -> int:
        """Process id of what the supervisor calls `name`; 0 while it is down."""
        return int(supervision.inspect(self.home)[name]["pid"])

    def signal_group(self, number: signal.Signals) -> None:
        os.killpg(self.make.pid, number)

    def wait(self, timeout: float = 60) -> int:
        return self.make.wait(timeout)
