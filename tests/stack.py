"""The processes of a deployment, started as `make run` starts them, and watched: one that dies is started again.

They are forks of a server that has imported their libraries, as those of `make run` are forks of its supervisor.
"""

import multiprocessing
import os
import signal
import threading
from multiprocessing.context import ForkServerProcess
from typing import Any

import requests

from config.local.supervision import FORKED
from config.processes import Edition, of_kind
from tests import kinds, servers, waiting
from tests.become import become

WORKERS = ("wake", "ops", "background")  # they carry operations out, in `full`

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["tests.preloaded"])


@kinds.needs("deployment")
class Stack:
    """Processes by name. `kill` and `freeze` do to the whole process group what a crash or a stalled machine does.

    `names` are all processes of the edition, `workers` those of them that carry operations out. `execute`: as on a platform,
    each is an interpreter of its own, and the environment that /proc shows is its own.
    """

    def __init__(self, edition: Edition = "full", *, execute: bool = False, **environment: str) -> None:
        kinds.require("deployment")
        self.execute = execute
        self.names = tuple(process.name for process in of_kind("app", edition=edition))
        self.workers = ("worker",) if edition == "small" else WORKERS
        self.port = servers.free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        ours = {"ORCH_PROCESSES": edition, "ORCH_PORT": str(self.port), "ORCH_WEB_WORKERS": "1", "CI": ""}
        self.environment = {**os.environ, **FORKED, **ours, **environment}
        self._processes: dict[str, ForkServerProcess] = {}
        self._began: dict[str, int] = {}  # where in a log, which another stack may have begun, this one's lines begin
        self._closing = threading.Event()
        self._keeper = threading.Thread(target=self._keep_alive, daemon=True)
        self._keeper.start()

    def start(self, *names: str) -> None:
        for name in names:
            self._processes[name] = self._spawn(name)

    def _spawn(self, name: str) -> ForkServerProcess:
        """`ops.2` is a second `ops`."""
        kind = name.partition(".")[0]
        log = servers.HOME / "log" / f"test-{name}.log"
        log.parent.mkdir(exist_ok=True)
        self._began.setdefault(name, log.stat().st_size if log.exists() else 0)
        environment = {**self.environment, "ORCH_PROCESS": kind}
        process = _forks.Process(target=become, args=(kind, environment, log), kwargs={"execute": self.execute})
        process.start()
        waiting.until(lambda: _leads_a_session(process), 10, f"{name} has a session of its own")
        return process

    def _keep_alive(self) -> None:
        while not self._closing.wait(0.2):
            for name, process in list(self._processes.items()):
                if not process.is_alive() and not self._closing.is_set():
                    self._processes[name] = self._spawn(name)

    def forget(self, name: str) -> ForkServerProcess:
        """The process, which is not started again when it ends."""
        return self._processes.pop(name)

    def stop(self, name: str) -> None:
        """SIGKILL, and not started again."""
        process = self.forget(name)
        if process.is_alive():
            os.killpg(_pid(process), signal.SIGKILL)
        process.join()

    def pid(self, name: str) -> int:
        return _pid(self._processes[name])

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


def _pid(process: ForkServerProcess) -> int:
    assert process.pid is not None  # it was started
    return process.pid


def _leads_a_session(process: ForkServerProcess) -> bool:
    """Whether signals to its group reach it; or it has ended already."""
    try:
        return os.getsid(_pid(process)) == process.pid
    except ProcessLookupError:
        return True
