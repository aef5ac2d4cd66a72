"""The launcher, a small program between a worker and an engine: `python -m engines.backends.process.launch`.

The launcher reads its order as JSON from stdin. A worker can be killed or frozen at any instant. A worker is thus never the
parent of an engine, and never holds anything that an engine depends on. The launcher runs in its own session and carries out the
steps of a start that must not be interrupted, even when the worker dies:

1. The launcher takes the engine's lock: an exclusive `flock` on the engine's folder. The engine inherits the open folder across
   `exec`. The kernel thus keeps the lock for exactly as long as the engine lives, and gives the lock to a single process.
2. The process that becomes the engine first writes its own record, and *then* checks that its instance still exists. A destroy
   works in the opposite order: first the instance's spec is deleted, *then* the process is read from the record and killed.
   Either the process finds its spec deleted, or the destroy finds the record. No process stays unknown, and no process survives
   its instance.
3. The launcher ends as soon as the engine listens on its port, ends, or is slow. The engine is then a child of init.
"""

import errno
import fcntl
import json
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from enum import IntEnum
from pathlib import Path
from typing import Any, NoReturn

from engines.backends.process import processes, store

LOCK_WAIT_S = 5.0  # for an ending process or a second launcher to release the lock
LISTEN_WAIT_S = 3.0
NOT_EXECUTABLE = 127
NICE = "10"
PORT_IN_USE = 98  # exit code of an engine whose port is taken (errno EADDRINUSE)


class Outcome(IntEnum):
    """The launcher's exit code."""

    STARTED = 0  # now or earlier, even if the engine ended by itself at once
    MISSING = 10
    OTHER_RUNS = 11
    PORT_TAKEN = 12
    LOCKED = 13
    NOT_STARTED = 14


def main() -> Outcome:
    """Carry out the order `{"folder", "mark", "argv", "env", "bind"}` on stdin."""
    order = json.load(sys.stdin)
    try:
        lock = os.open(order["folder"], os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return Outcome.MISSING
    # The open folder, not its name: a removed folder stays removed, even if a new folder has the same name by now.
    folder = Path(f"/proc/self/fd/{lock}")
    mark = order["mark"]
    refused = claim(lock, folder, mark)
    if refused is not None:
        return refused
    spec = store.read_spec(folder, mark)
    if spec is None:
        return Outcome.MISSING
    if not is_free(order["bind"], spec["port"]):
        return Outcome.PORT_TAKEN
    child = os.fork()
    if child == 0:
        become(lock, folder, order, spec)
    os.close(lock)  # from here on only the engine holds the lock
    outcome = watch(child, spec["port"])
    if outcome is Outcome.NOT_STARTED and store.read_spec(Path(order["folder"]), mark) is None:
        return Outcome.MISSING  # removed while the child was starting
    return outcome


def claim(lock: int, folder: Path, mark: str) -> Outcome | None:
    """Take the engine's lock. None: the lock is ours, and no process of the engine runs. Else the launcher's exit code."""
    deadline = time.monotonic() + LOCK_WAIT_S
    while time.monotonic() < deadline:
        locked = _try_lock(lock)
        running = store.running(folder)
        if running:
            return Outcome.STARTED if mark in running else Outcome.OTHER_RUNS
        if locked:
            return None
        _end_leftovers(folder)
        time.sleep(processes.POLL_S)
    return Outcome.LOCKED


def is_free(host: str, port: int) -> bool:
    """Whether an engine could listen on `port` of `host` now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return False
    return True


def become(lock: int, folder: Path, order: dict[str, Any], spec: dict[str, Any]) -> NoReturn:
    """Replace the calling process, a fresh child, by the engine. Never returns."""
    try:
        os.setsid()
        _give_way()
        os.umask(0o077)
        mark = order["mark"]
        made_by = (order["bind"], order["env"]["CATALOG_DIR"])
        store.write_record(folder, mark, store.Record(processes.current(), spec["port"], *made_by))
        if store.is_doomed(folder) or store.read_spec(folder, mark) is None:
            (folder / f"{mark}.pid").unlink(missing_ok=True)
            os._exit(Outcome.MISSING)
        _redirect(folder / f"{mark}.log")
        (folder / "data").mkdir(mode=0o700, exist_ok=True)
        os.chdir(folder / "data")
        os.set_inheritable(lock, True)
        _reset_signals()
        os.execve(order["argv"][0], order["argv"], environment(order, spec))
    except OSError as error:
        print(f"not started: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(NOT_EXECUTABLE)


def environment(order: dict[str, Any], spec: dict[str, Any]) -> dict[str, str]:
    """All environment variables of the engine. The worker's variables are not inherited, except PATH from the order."""
    database = Path(order["folder"]) / "data" / "brain.sqlite"
    own = {"PORT": str(spec["port"]), "BIND": order["bind"], "SQLITE_DB_PATH": str(database)}
    return {**spec["env"], **order["env"], **own}


def watch(child: int, port: int) -> Outcome:
    """Wait until the engine listens or ends, at most LISTEN_WAIT_S seconds."""
    ended: list[int] = []

    def settled() -> bool:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            ended.append(os.waitstatus_to_exitcode(status))
        return bool(ended) or processes.listens(child, port)

    processes.wait_until(settled, LISTEN_WAIT_S)
    outcomes = {PORT_IN_USE: Outcome.PORT_TAKEN, NOT_EXECUTABLE: Outcome.NOT_STARTED, Outcome.MISSING: Outcome.MISSING}
    return outcomes.get(ended[0], Outcome.STARTED) if ended else Outcome.STARTED


def _give_way() -> None:
    """Lower the priority of our session, to leave processor time to processes that answer admits.

    Linux shares processor time among sessions (autogroups) first. The niceness of a process alone thus has no effect.
    """
    with suppress(OSError):
        Path("/proc/self/autogroup").write_text(NICE)


def _try_lock(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _end_leftovers(folder: Path) -> None:
    """Kill the processes that a dead engine left in its session: they may have inherited the lock."""
    for record in store.records(folder).values():
        if not processes.is_alive(record.process):
            processes.end(record.process, grace_s=0, timeout_s=1)


def _redirect(path: Path) -> None:
    """Send standard output and error to the log, and make standard input empty."""
    store.trim_log(path)
    log = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    os.close(nothing)


def _reset_signals() -> None:
    """Reset the signals to their defaults, because ignored and blocked signals of the worker would survive `exec`."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


if __name__ == "__main__":
    sys.exit(main())
