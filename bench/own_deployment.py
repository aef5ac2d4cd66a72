"""A temporary deployment of a benchmark: every process of `full` with the shipped settings.

PostgreSQL and Valkey are child processes, for a benchmark to freeze or to restart.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import requests
from django.core.management.base import CommandError

from bench import servers
from common.settings import settings

KEPT = ("ORCH_PG_BIN",)
UP_S = 60.0
SERVERS = ("valkey", "postgres")


class Own:
    """The processes of the deployment by name. Every process leads a session, and thus a signal reaches its children too."""

    def __init__(self, home: Path, **environment: str) -> None:
        self.home = home
        self.port = servers.free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("ORCH_") or name in KEPT}
        ours = {"ORCH_PROCESSES": "full", "ORCH_HOME": str(home), "ORCH_PORT": str(self.port)}
        self._environment = {**inherited, **ours, **environment}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def log(self, name: str) -> Path:
        return self.home / "log" / f"{name}.log"

    def run(self, *arguments: str) -> str:
        """Run a Python program of the project to its end, and return its output. Raises CommandError when the program fails."""
        done = subprocess.run(
            [sys.executable, *arguments], cwd=settings.BASE_DIR, env=self._environment, capture_output=True, text=True
        )
        if done.returncode:
            raise CommandError(f"{' '.join(arguments)}: {(done.stdout + done.stderr)[-2000:]}")
        return done.stdout

    def start(self, *names: str) -> None:
        """Start the processes without waiting for readiness."""
        for name in names:
            self.spawn(name, "-m", "config.processes", "exec", name)

    def spawn(self, name: str, *arguments: str) -> None:
        """Start a Python program of the project as the process `name`, without waiting for readiness."""
        with self.log(name).open("ab") as output:
            self._processes[name] = subprocess.Popen(
                [sys.executable, *arguments], cwd=settings.BASE_DIR, env=self._environment,
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip

    def pid(self, name: str) -> int:
        return self._processes[name].pid

    def send(self, name: str, number: signal.Signals) -> None:
        """Send the signal `number` to the process and its children."""
        os.killpg(self._processes[name].pid, number)

    def stop(self, name: str, number: signal.Signals = signal.SIGTERM, patience_s: float = servers.STOP_S) -> None:
        """Send the signal `number`, and return when the process has ended; SIGKILL after `patience_s` seconds."""
        process = self._processes.pop(name)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        try:
            process.wait(patience_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def wait(self) -> None:
        """Return once `/health` answers 200. Raises CommandError after UP_S seconds."""
        deadline = time.monotonic() + UP_S
        while not self._serves():
            if time.monotonic() > deadline:
                raise CommandError(f"the deployment is not healthy after {UP_S:.0f} s: {self.log('web').read_text()[-2000:]}")
            time.sleep(0.05)

    def _serves(self) -> bool:
        try:
            return requests.get(f"{self.url}/health", timeout=2).status_code == 200
        except requests.RequestException:
            return False

    def admin_key(self) -> str:
        lines = (self.home / "env").read_text().splitlines()
        return next(line.partition("=")[2] for line in lines if line.startswith("ORCH_ADMIN_KEY="))

    def close(self) -> None:
        """End the processes in order: the applications, then the engines, then the servers."""
        for name in [name for name in self._processes if name not in SERVERS]:
            self.stop(name)
        with contextlib.suppress(CommandError):
            self.run("manage.py", "stop_engines")
        for name in list(self._processes):
            self.stop(name, signal.SIGINT)


@contextlib.contextmanager
def deployment(**environment: str) -> Iterator[Own]:
    """A serving deployment with additional environment variables; ended and deleted afterwards. Raises CommandError."""
    home = Path(tempfile.mkdtemp(prefix="roundhouse-bench-"))
    home.chmod(0o711)
    own = Own(home, **environment)
    try:
        own.run("manage.py", "migrate", "--noinput")
        own.start(*SERVERS)
        apps = own.run("-m", "config.processes", "procfile").splitlines()
        own.start(*(line.partition(":")[0] for line in apps if not line.startswith("release:")))
        own.wait()
        yield own
    finally:
        own.close()
        shutil.rmtree(home, ignore_errors=True)
