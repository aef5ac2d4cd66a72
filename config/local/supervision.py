"""The supervisor of `make run`: its configuration, its start, and a client of its XML-RPC interface on a Unix socket.

The supervisor restarts a dead process, without limit, but starts a step only once. The supervisor ends with its parent, and stops
all its processes.
"""

import os
import pwd
import re
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, cast
from xmlrpc.client import Fault, ServerProxy, Transport

from config.local.embedded import Refused, supervised
from config.local.home import BASE_DIR, runtime_folder
from config.processes import Process, die_with_parent

START_S = 15.0
STOP_S = 90.0
STEP_S = 600.0  # long enough for migrations of a large database
# Variables of the supervisor's interpreter, inherited by forks. SPT_NOENV: process titles do not overwrite /proc/PID/environ.
FORKED = {"PYTHONUNBUFFERED": "1", "SPT_NOENV": "1"}


def configuration(home: Path, processes: list[Process]) -> str:
    """supervisord's configuration, without secrets; paths begin with the home (`%(here)s`), except a short socket folder.

    supervisord expands `stdout_logfile` twice. Each `%` is doubled there: a home with a `%` in its name is put in by the second
    expansion only.
    """
    socket = runtime_folder(home) / "supervisor.sock"
    where = "%(here)s/run/supervisor.sock" if socket.parent == home / "run" else str(socket)
    user = f"user={pwd.getpwuid(0).pw_name}\n" if os.geteuid() == 0 else ""
    head = f"""\
[supervisord]
{user}nodaemon=true
silent=true
identifier=roundhouse
logfile=%(here)s/log/supervisor.log
logfile_maxbytes=1MB
logfile_backups=1
pidfile=%(here)s/run/supervisor.pid

[unix_http_server]
file={where}
chmod=0700

[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface

[rpcinterface:roundhouse]
supervisor.rpcinterface_factory=config.local.supervisor:make_interface
"""
    # Groups stop in the order of falling priority: the servers go last.
    groups = "".join(
        f"\n[group:{kind}]\npriority={priority}\nprograms={','.join(names)}\n"
        for kind, priority in (("server", 10), ("app", 20), ("step", 30))
        if (names := [process.name for process in processes if process.kind == kind])
    )
    return head + "".join(_program(process) for process in processes) + groups


def _program(process: Process) -> str:
    keep = "autorestart=true\nstartretries=1000000\nstartsecs=1"
    once = "autorestart=false\nstartretries=0\nstartsecs=0"
    return f"""
[program:{process.name}]
command=python -m config.processes exec {process.name}
autostart=false
{once if process.kind == "step" else keep}
stopsignal={process.stop_signal}
stopwaitsecs={process.stop_seconds}
stopasgroup=true
killasgroup=true
redirect_stderr=true
stdout_logfile=%%(here)s/log/{process.name}.log
stdout_logfile_maxbytes=10MB
stdout_logfile_backups=1
"""


def start(home: Path, processes: list[Process]) -> subprocess.Popen[bytes]:
    """Start supervisord in a session of its own, with no processes yet. Raises Refused."""
    conf = home / "supervisor.conf"
    conf.write_text(configuration(home, processes))
    # PATH leads to our interpreter: the configuration then contains no interpreter path, which might need quoting.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    log = home / "log" / "supervisor.log"
    with log.open("ab") as output:  # supervisord says here why it cannot open its own log
        began = output.tell()
        child = subprocess.Popen(
            [sys.executable, "-m", "config.local.supervisor", "-c", str(conf)],
            env={**os.environ, **FORKED, "PATH": path}, cwd=BASE_DIR, start_new_session=True, umask=0o077,
            stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            preexec_fn=partial(die_with_parent, signal.SIGTERM),
        )  # fmt: skip
    deadline = time.monotonic() + START_S
    while not supervised(home):
        if child.poll() is not None or time.monotonic() > deadline:
            child.kill()
            said = log.read_bytes()[began:].decode(errors="replace")
            raise Refused(f"the supervisor does not start: {_gist(said)} (see {log})")
        time.sleep(0.05)
    return child


def wait_until_gone(home: Path) -> bool:
    """Wait until the supervisor of a killed launcher is gone; return whether the supervisor was killed, too.

    The processes of a killed supervisor have got their stop signal, but may still be stopping. Raises Refused.
    """
    deadline = time.monotonic() + STOP_S
    while supervised(home):
        if time.monotonic() > deadline:
            raise Refused(f"the processes of an earlier run do not stop: see {home / 'log'}")
        time.sleep(0.2)
    return (home / "run" / "supervisor.pid").exists()


class _Transport(Transport):
    """XML-RPC over a Unix socket. (The module of supervisor's own transport takes 0.2 s to import.)"""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def make_connection(self, host: Any) -> HTTPConnection:
        return _Connection(self._path)


class _Connection(HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self._path))


def _call(home: Path, method: str, *arguments: Any, interface: str = "supervisor") -> Any:
    """Call supervisord. Raises Refused, also when supervisord has ended."""
    path = runtime_folder(home) / "supervisor.sock"
    try:
        with ServerProxy("http://localhost", transport=_Transport(path)) as proxy:
            return getattr(getattr(proxy, interface), method)(*arguments)
    except (Fault, HTTPException, OSError) as error:
        raise Refused(f"the supervisor did not carry out {method}: {error!r}; see {home / 'log' / 'supervisor.log'}") from error


def load(home: Path, variables: dict[str, str]) -> None:
    """Have supervisord import the libraries of `prepare` and `web`, and give `variables` to all processes started later."""
    _call(home, "load", variables, interface="roundhouse")


def load_rest(home: Path) -> None:
    """Have supervisord import the libraries needed only by workers."""
    _call(home, "load_rest", interface="roundhouse")


def start_step(home: Path, name: str) -> None:
    """Start a step of the list, with an empty log."""
    (home / "log" / f"{name}.log").unlink(missing_ok=True)
    start_process(home, "step", name)


def finish_step(home: Path, name: str) -> None:
    """Wait until the step has ended. Raises Refused if the step failed, with the log line of the reason."""
    log = home / "log" / f"{name}.log"
    deadline = time.monotonic() + STEP_S
    while (step := inspect(home)[name])["statename"] in ("STARTING", "RUNNING"):
        if time.monotonic() > deadline:
            raise Refused(f"{name} has not ended after {STEP_S:.0f} s: see {log}")
        time.sleep(0.05)
    if step["statename"] != "EXITED" or step["exitstatus"]:
        raise Refused(f"{name} failed: {_gist(log.read_text(errors='replace'))} (see {log})")


def _gist(text: str) -> str:
    """The line of a command's output with the reason of a failure: the last error, else the last line."""
    lines = [line for line in text.split("\n") if line.strip()] or ["no output"]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Unavailable)\b", line)]
    return (errors or lines)[-1]


def start_process(home: Path, kind: str, name: str) -> None:
    """Start a process of a kind, without waiting for the process."""
    _call(home, "startProcess", f"{kind}:{name}", False)


def start_group(home: Path, kind: str) -> None:
    """Start the processes of a kind that are not up, without waiting for the processes."""
    _call(home, "startProcessGroup", kind, False)


def stop_group(home: Path, kind: str) -> None:
    """Stop a kind's processes, and wait until all are gone."""
    _call(home, "stopProcessGroup", kind, True)


def inspect(home: Path) -> dict[str, dict[str, Any]]:
    """supervisord's facts on every process, by name: among others `statename` (RUNNING, STARTING, BACKOFF...) and `pid`."""
    found = cast(list[dict[str, Any]], _call(home, "getAllProcessInfo"))
    return {process["name"]: process for process in found}


def stop(child: subprocess.Popen[bytes]) -> None:
    """End the supervisor and all its processes."""
    child.terminate()
    try:
        child.wait(STOP_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
