"""Loaded first of all (`-p tests.servers`): the environment of a test run, before settings are read, and its servers.

Every run has a home of its own in a temporary folder, with a real PostgreSQL, a real Valkey and the memory backend's server.
All of them end with the run.
"""

import atexit
import itertools
import os
import shutil
import signal
import socket
import tempfile
from contextlib import suppress
from pathlib import Path

# A shell that runs us in the background has us ignore it, and so would whatever we start: some tests interrupt that.
signal.signal(signal.SIGINT, signal.default_int_handler)
# SIGTERM ends a run in good order, as Ctrl-C does: its servers, containers and network namespaces are taken away.
signal.signal(signal.SIGTERM, signal.default_int_handler)

HOME = Path(tempfile.mkdtemp(prefix="roundhouse-test-"))
HOME.chmod(0o711)


for _name in [name for name in os.environ if name.startswith("ORCH_") and name not in ("ORCH_PG_BIN", "ORCH_REQUIRE_DOCKER")]:
    del os.environ[_name]
# Of several processes side by side each has ports of its own: TEST_RUN numbers the runs, pytest-xdist the processes of a run. The
# ports are below those that the kernel gives to connections (32768 and up).
PORTS, MOST_PROCESSES = 1000, 4
FOR_ENGINES = 700  # the first of them; `free_port` gives the others
_run, _process = os.environ.get("TEST_RUN") or "0", os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
FIRST_PORT = 20_001 + PORTS * (MOST_PROCESSES * int(_run) + int(_process))
_others = itertools.cycle(range(FIRST_PORT + FOR_ENGINES, FIRST_PORT + PORTS))


def free_port() -> int:
    """A port that nothing listens on just now, and that nobody else is given before this process has been given 300 ports."""
    for port in _others:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("unreachable: the ports go round")


os.environ |= {
    "ORCH_HOME": str(HOME),
    "ORCH_PORT": str(free_port()),
    "ORCH_PORT_MIN": str(FIRST_PORT),
    "ORCH_PORT_MAX": str(FIRST_PORT + FOR_ENGINES - 1),
    "ORCH_ENGINE_BACKEND": "subprocess",  # of processes that tests start; this one has `memory`, see conftest
    "ORCH_BOOT_TIMEOUT_S": "20",
    "ORCH_STOP_GRACE_S": "5",
    "ORCH_LOG_LEVEL": "WARNING",
}

from config.local import embedded  # noqa: E402 (the environment had to be there first)
from tests import memory  # noqa: E402

SERVERS = embedded.Servers(HOME)
MEMORY = memory.Server(HOME / "run" / "memory.sock")


@atexit.register
def _stop() -> None:
    MEMORY.close()
    SERVERS.stop()
    shutil.rmtree(HOME, ignore_errors=True)
