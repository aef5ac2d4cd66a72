"""The processes of a deployment, started as `make run` starts them, and watched: one that dies is started again."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import requests

from tests import servers

WORKERS = ("wake", "ops", "background")  # they carry operations out
ROOT = Path(__file__).resolve().parent.parent


class Stack:
    """Processes by name. `kill` and `freeze` do to the whole process group what a crash or a stalled machine does."""

    def __init__(self, **environment: str) -> None:
        self.port = servers.free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = {**os.environ, "ORCH_PORT": str(self.port), "ORCH_WEB_WORKERS": "1", "CI": "", **environment}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._began: dict[str, int] = {}  # where in a log, which another stack may have begun, this one's lines begin
        self._closing = threading.Event()
        self._keeper = threading.Thread(target=self._keep_alive, daemon=True)
        self._keeper.start()

    def start(self, *names: str) -> None:
        for name in names:
            self._processes[name] = self._spawn(name)

    def _spawn(self, name: str) -> "subprocess.Popen[bytes]":
        """`ops.2` is a second `ops`."""
        kind = name.partition(".")[0]
        log = servers.HOME / "log" / f"test-{name}.log"
        log.parent.mkdir(exist_ok=True)
        self._began.setdefault(name, log.stat().st_size if log.exists() else 0)
        environment = {**self.environment, "ORCH_PROCESS": kind}
        with log.open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "config.processes", "exec", kind],
                cwd=ROOT, env=environment, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip

    def _keep_alive(self) -> None:
        while not self._closing.wait(0.2):
            for name, process in list(self._processes.items()):
                if process.poll() is not None and not self._closing.is_set():
                    self._processes[name] = self._spawn(name)

    def stop(self, name: str) -> None:
        """SIGKILL, and not started again."""
        process = self._processes.pop(name)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def pid(self, name: str) -> int:
        return self._processes[name].pid

    def kill(self, name: str) -> None:
        """SIGKILL; the process comes back by itself."""
        os.killpg(self.pid(name), signal.SIGKILL)

    def freeze(self, name: str) -> int:
        """SIGSTOP; returns the group to `thaw`."""
        os.killpg(self.pid(name), signal.SIGSTOP)
        return self.pid(name)

    def thaw(self, group: int) -> None:
        os.killpg(group, signal.SIGCONT)

    def serves(self) -> bool:
        try:
            return requests.get(f"{self.url}/health", timeout=2).status_code == 200
        except requests.RequestException:
            return False

    def call(self, method: str, path: str, key: str, body: Any = None, timeout: float = 90, **headers: str) -> requests.Response:
        """One request as a product."""
        return requests.request(method, self.url + path, json=body, headers={"X-Platform-Key": key, **headers}, timeout=timeout)

    def close(self) -> None:
        self._closing.set()
        self._keeper.join()
        for name in list(self._processes):
            self.stop(name)

    def log(self, name: str) -> str:
        """What this stack's process of that name has written."""
        return (servers.HOME / "log" / f"test-{name}.log").read_bytes()[self._began[name] :].decode()

    def errors(self) -> str:
        """The lines at level `error` that its processes have written: why it answered with a 500."""
        lines = [line for name in self._began for line in self.log(name).splitlines()]
        return "\n".join(line for line in lines if '"level": "error"' in line)
