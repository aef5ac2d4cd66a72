"""Processes of the local machine, named by more than their pid: the kernel reuses the pid of an ended process.

Linux only: the data comes from /proc.
"""

import os
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Set
from pathlib import Path
from typing import NamedTuple

POLL_S = 0.02


class Process(NamedTuple):
    """The name of a process for all time: no two processes have the same values."""

    pid: int
    start: int  # clock ticks after the boot
    boot: str  # the kernel's id of the boot


class _Stat(NamedTuple):
    state: str
    session: int
    start: int


def current() -> Process:
    """The calling process."""
    found = _stat(os.getpid())
    assert found is not None, "/proc is not mounted"
    return Process(os.getpid(), found.start, _boot())


def is_alive(process: Process) -> bool:
    """Whether the process still runs. A zombie, of which only the exit code is left, does not run."""
    found = _stat(process.pid)
    return found is not None and _runs(found) and found.start == process.start and process.boot == _boot()


def end(process: Process, *, grace_s: float, timeout_s: float) -> bool:
    """End a session leader and everything in its session: SIGTERM, up to `grace_s` seconds, SIGKILL.

    Processes that outlive their leader are killed too. False if some still run `timeout_s` seconds after the kill.
    """
    if grace_s > 0 and is_alive(process):
        _signal(process, signal.SIGTERM)
        wait_until(lambda: not is_alive(process), grace_s)
    return wait_until(lambda: not _signal(process, signal.SIGKILL), timeout_s)


Listeners = Mapping[int, Set[str]]


def listeners() -> Listeners:
    """The inodes of all listening TCP sockets of this machine, by port (any address)."""
    found: defaultdict[int, set[str]] = defaultdict(set)
    for line in _sockets():
        if line[3] == "0A":
            found[int(line[1].rpartition(":")[2], 16)].add(line[9])
    return found


def listens(pid: int, port: int, among: Listeners | None = None) -> bool:
    """Whether the process itself has a listening TCP socket on `port`; `among`: a recent answer of `listeners`."""
    inodes = (listeners() if among is None else among).get(port, frozenset())
    if not inodes:
        return False
    try:
        links = [str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:  # the process ended, or closed a file, while we were reading
        return False
    return any(link[8:-1] in inodes for link in links if link.startswith("socket:["))


def wait_until(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Poll `condition` until it holds; False after `timeout_s` seconds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_S)
    return True


def _signal(process: Process, number: signal.Signals) -> bool:
    """Send a signal to all members of the process's session; False when the session has no member."""
    found = _members(process)
    for pid in found:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue
    return bool(found)


def _members(process: Process) -> list[int]:
    """Running processes of the session that `process` leads or led.

    While any member lives, the kernel does not reuse the leader's pid. A stranger with the leader's pid thus proves that all
    members are gone.
    """
    leader = _stat(process.pid)
    if process.boot != _boot() or (leader is not None and leader.start != process.start):
        return []
    found = ((int(entry.name), _stat(int(entry.name))) for entry in Path("/proc").iterdir() if entry.name.isdecimal())
    return [pid for pid, stat in found if stat is not None and stat.session == process.pid and _runs(stat)]


def _runs(stat: _Stat) -> bool:
    return stat.state not in "ZX"


def _stat(pid: int) -> _Stat | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()  # the name in parentheses may contain spaces and parentheses
    return _Stat(state=fields[0], session=int(fields[3]), start=int(fields[19]))


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _sockets() -> list[list[str]]:
    """The lines of the kernel's tables of TCP sockets, in words; engines have the network of our own process."""
    lines: list[list[str]] = []
    for table in ("tcp", "tcp6"):
        try:
            text = Path(f"/proc/self/net/{table}").read_text()
        except OSError:  # the kernel has no IPv6
            continue
        lines += [line.split() for line in text.splitlines()[1:]]
    return lines
