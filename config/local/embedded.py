"""Real PostgreSQL and real Valkey for a laptop and for tests, without anything to install. Never in production.

`make run` keeps the servers under its supervisor. Otherwise every `manage.py` process counts as a user of its home's servers: the
first user starts the servers, the last user stops them. `make run` takes over from servers that run already.
"""

import fcntl
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from config.local import backend_choice, postgres, valkey
from config.local.home import Refused, accepts, deployment, lay_out, locate, read_secrets, runtime_folder

__all__ = ["Refused", "Servers", "Urls", "environment", "home", "locked", "running", "supervised"]

MODULES: dict[str, ModuleType] = {"postgres": postgres, "valkey": valkey}
STOP_SIGNALS = {"postgres": (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL), "valkey": (signal.SIGTERM, signal.SIGKILL)}
READY_S = 60.0  # crash recovery included
RESPAWN_S = 15.0  # after a kill, PostgreSQL refuses to start until the last orphaned process of the killed server is gone
LOG_BYTES = 10_000_000
MARKER = "started-by-manage"  # a file in the home; while the file exists, the last user stops the servers

home = locate


@dataclass(frozen=True)
class Urls:
    """Connection URLs of a home: three roles of PostgreSQL, and Valkey."""

    database: str
    owner: str
    superuser: str
    redis: str


def environment(home: Path) -> dict[str, str]:
    """Defaults of the `ORCH_*` variables of `home`, generated on first use; no server is started.

    The owner's URL is left out if ORCH_DATABASE_URL names a database outside the home. Raises Refused.
    """
    lay_out(home)
    generated = {name: value for name, value in read_secrets(home).items() if name.startswith("ORCH_")}
    urls = Servers(home).urls
    generated |= {"ORCH_HOME": str(home), "ORCH_DATABASE_URL": urls.database, "ORCH_REDIS_URL": urls.redis}
    if not os.environ.get("ORCH_DATABASE_URL"):
        generated["ORCH_DATABASE_OWNER_URL"] = urls.owner
    generated["ORCH_DEPLOYMENT"] = deployment(home)
    if backend := backend_choice.kept(home):
        generated["ORCH_ENGINE_BACKEND"] = backend
    return generated


class Servers:
    """The servers of a home, as far as `wanted` ("postgres", "valkey").

    Processes share no state but the servers' own pid files: any process can start, find and stop the servers.
    """

    def __init__(self, home: Path, wanted: tuple[str, ...] = ("postgres", "valkey")) -> None:
        self.home = home
        self.wanted = wanted
        self._children: dict[str, subprocess.Popen[bytes] | None] = {}  # None: the server ran already

    @classmethod
    def missing(cls, home: Path) -> "Servers":
        """The servers without a URL in the environment; none in production."""
        if os.environ.get("ORCH_ENVIRONMENT", "local") != "local":
            return cls(home, ())
        names = {"postgres": "ORCH_DATABASE_URL", "valkey": "ORCH_REDIS_URL"}
        return cls(home, tuple(name for name, variable in names.items() if not os.environ.get(variable)))

    @property
    def urls(self) -> Urls:
        lay_out(self.home)
        database, owner, superuser = (
            postgres.url(self.home, role) for role in (postgres.APP, postgres.OWNER, postgres.SUPERUSER)
        )
        return Urls(database, owner, superuser, valkey.url(self.home))

    def prepare(self) -> None:
        """Make folders, secrets and a cluster, and remove the locks of a dead server. Raises Refused."""
        lay_out(self.home)
        if "postgres" in self.wanted:
            postgres.create(self.home)
            if postgres.pid(self.home) is None:
                postgres.clear_stale(self.home)

    def start(self) -> None:
        """Start the servers that are down, in sessions of their own; return when all answer. Raises Refused."""
        self.prepare()
        for name in self.wanted:
            self._spawn(name)
        self.wait()

    def wait(self) -> None:
        """Return when all servers answer; respawn a server that ended after `start` spawned or found it. Raises Refused."""
        began = time.monotonic()
        while waiting := [name for name in self.wanted if not MODULES[name].answers(self.home)]:
            waited = time.monotonic() - began
            for name in waiting:
                gave_up = self._gave_up(name)
                if waited > (RESPAWN_S if gave_up else READY_S):
                    raise Refused(f"{name} does not start: see {self._log(name)}")
                if gave_up:
                    self.prepare()
                    self._spawn(name)
            time.sleep(0.3 if waited > 2 else 0.05)
        if "postgres" in self.wanted:
            postgres.ensure_roles(self.home)

    def stop(self) -> None:
        """Stop all wanted servers, also servers started by another process; return when all are gone. Safe to repeat."""
        for name in self.wanted:
            any(self._end(name, number) for number in STOP_SIGNALS[name])
        for child in filter(None, self._children.values()):
            child.wait()
        self._children.clear()

    def remove(self) -> None:
        """Stop the servers and delete the home, including its parts elsewhere: PostgreSQL's data, short socket folders."""
        self.stop()
        for folder in (postgres.sockets(self.home), postgres.folder(self.home), runtime_folder(self.home), self.home):
            shutil.rmtree(folder, ignore_errors=True)

    def runs(self, name: str) -> bool:
        """Whether the process of the server `name` lives; the server may not answer yet."""
        return MODULES[name].pid(self.home) is not None

    def _gave_up(self, name: str) -> bool:
        """Whether a server spawned or found by `start` has ended; a server killed just before may still have seemed alive."""
        if (child := self._children.get(name)) is not None:
            return child.poll() is not None
        return name in self._children and not self.runs(name)

    def _spawn(self, name: str) -> None:
        if self.runs(name):
            self._children.setdefault(name, None)
            return
        log = self._log(name)
        if log.exists() and log.stat().st_size > LOG_BYTES:
            log.replace(log.with_suffix(".log.1"))
        as_owner = postgres.identity(self.home) if name == "postgres" else {}
        with log.open("ab") as output:
            self._children[name] = subprocess.Popen(
                MODULES[name].argv(self.home), stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True, cwd="/", **as_owner,
            )  # fmt: skip

    def _end(self, name: str, number: signal.Signals) -> bool:
        """Send `number` to the server; return whether the server ended within 15 s."""
        find: Callable[[Path], int | None] = MODULES[name].pid
        if (pid := find(self.home)) is None:
            return True
        with suppress(ProcessLookupError):
            os.kill(pid, number)
        deadline = time.monotonic() + 15
        while find(self.home) == pid:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True

    def _log(self, name: str) -> Path:
        return self.home / "log" / f"{name}.log"


@contextmanager
def locked(path: Path, mode: int) -> Iterator[int]:
    """Lock `path` in `flock` mode `mode`; the kernel releases the lock of a dead process. Raises BlockingIOError with LOCK_NB."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, mode)
        yield handle
    finally:
        os.close(handle)


def supervised(home: Path) -> bool:
    """Whether the supervisor of a `make run` of the home is up, and with the supervisor the servers."""
    return accepts(runtime_folder(home) / "supervisor.sock")


@contextmanager
def running(home: Path) -> Iterator[None]:
    """Keep the servers up that the environment needs, during the block. Raises Refused."""
    servers = Servers.missing(home)
    if not servers.wanted:
        yield
        return
    lay_out(home)
    with locked(home / "users.lock", fcntl.LOCK_SH) as users:
        _enter(servers)
        try:
            yield
        finally:
            _leave(home, users)


def _enter(servers: Servers) -> None:
    with locked(servers.home / "servers.lock", fcntl.LOCK_EX):
        if _wait_for_supervised(servers):
            return
        if not all(servers.runs(name) for name in servers.wanted):
            (servers.home / MARKER).touch(mode=0o600)
        servers.start()


def _wait_for_supervised(servers: Servers) -> bool:
    """Return True once the servers of a running `make run` answer, False if no `make run` runs. Raises Refused."""
    deadline = time.monotonic() + READY_S
    while supervised(servers.home):
        if all(MODULES[name].answers(servers.home) for name in servers.wanted):
            return True
        if time.monotonic() > deadline:
            raise Refused(f"the servers of {servers.home} do not answer: see {servers.home / 'log'}")
        time.sleep(0.2)
    return False


def _leave(home: Path, users: int) -> None:
    with locked(home / "servers.lock", fcntl.LOCK_EX):
        try:
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return  # a further process still uses the servers
        if (home / MARKER).exists():
            Servers(home).stop()
            (home / MARKER).unlink()
