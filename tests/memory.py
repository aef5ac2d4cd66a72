"""The server that holds the memory backend's instances, as tests start, kill and end it."""

import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

from config.processes import die_with_parent
from engines.backends.base import BackendUnavailable
from engines.backends.memory import MemoryBackend
from tests import waiting

ROOT = Path(__file__).resolve().parent.parent


class Server:
    """At the socket `path`; `backend` is a client of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.backend = MemoryBackend(path, timeout_s=15)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Until it answers; nothing when it was started already."""
        if self._process is None:
            command = [sys.executable, "-m", "engines.backends.memory", str(self.path)]
            ends_with_us = partial(die_with_parent, signal.SIGTERM)
            self._process = subprocess.Popen(command, cwd=ROOT, preexec_fn=ends_with_us)
            waiting.until(self._answers, 30, "the memory backend's server answers")

    def kill(self) -> None:
        """SIGKILL, as a host that dies."""
        assert self._process
        self._process.kill()
        self._process.wait()
        self._process = None

    def close(self) -> None:
        """Ask it to end, if it was started; its exit code."""
        if self._process:
            self._process.terminate()
            assert self._process.wait(10) == 0
            self._process = None

    def _answers(self) -> bool:
        try:
            return bool(self.backend.identity())
        except BackendUnavailable:
            return False
