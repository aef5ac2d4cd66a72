"""The list of all processes, read by the supervisor of `make run`, the Procfile and the image's entry point.

The list has two editions (`ORCH_PROCESSES`): `small` has a single worker for everything, `full` has a process per queue.

python -m config.processes exec NAME     become the process NAME
python -m config.processes procfile      print the Procfile of the edition `full`
"""

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from common import socket_addresses
from common.editions import EDITIONS, USUAL, Edition
from config.local import postgres, valkey
from config.local.embedded import Refused, home


@dataclass(frozen=True)
class Process:
    """A process of Roundhouse: long-running (`server`, `app`), or ending by itself (`once`, and `step` of a local start or stop).

    `command` returns the command line, and is called in the new process just before executing the command line. `stop_seconds`
    is the grace period between `stop_signal` and SIGKILL. `nice` is added to the niceness of the process: processes with less
    urgent work leave the processor to `web`. `only` names the single edition with the process; by default both editions have
    the process.
    """

    name: str
    kind: Literal["server", "app", "once", "step"]
    command: Callable[[], list[str]]
    stop_signal: Literal["TERM", "INT"] = "TERM"
    stop_seconds: int = 15
    owns_database: bool = False
    nice: int = 0
    only: Edition | None = None


def _setting(name: str) -> str:
    """Value of `ORCH_<NAME>` as text, unchecked: `config.settings` checks the value once the program runs."""
    return os.environ.get(f"ORCH_{name.upper()}") or settings_defaults()[f"ORCH_{name.upper()}"]


def settings_defaults() -> dict[str, str]:
    """Defaults of the settings used in command lines, by name of the variable."""
    from common.env import Env  # here: only `web` needs the defaults, and pydantic takes long to import

    names = ("bind", "port", "web_threads", "engine_backend")
    defaults = {f"ORCH_{name.upper()}": str(Env.model_fields[name].default) for name in names}
    return {**defaults, "ORCH_WEB_WORKERS": str(Env.WEB_WORKERS[edition()])}


def edition() -> Edition:
    """The edition chosen by `ORCH_PROCESSES`. Raises Refused for an unknown edition."""
    chosen = os.environ.get("ORCH_PROCESSES") or USUAL
    if chosen not in EDITIONS:
        raise Refused(f"ORCH_PROCESSES={chosen} is neither {' nor '.join(EDITIONS)}")
    return chosen


def _module(name: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", name, *arguments]


def _web() -> list[str]:
    size = [
        "--workers",
        _setting("web_workers"),
        "--threads",
        _setting("web_threads"),
        "--worker-class",
        "config.web.server.Worker",
    ]
    limits = ["--timeout", "60", "--graceful-timeout", "30", "--keep-alive", "5", "--no-control-socket", "--preload"]
    limits += ["--worker-connections", "8000", "--no-sendfile", "--forwarded-allow-ips", ""]  # config.web does all three itself
    return _module(
        "gunicorn", "config.web.wsgi", *size, *limits, "--bind", socket_addresses.listen(_setting("bind"), _setting("port"))
    )


def _celery(name: str) -> Callable[[], list[str]]:
    return lambda: _module("config.worker", name)


def _postgres() -> list[str]:
    return postgres.argv(home())


def _valkey() -> list[str]:
    return valkey.argv(home())


def _migrate() -> list[str]:
    return [sys.executable, "manage.py", "migrate", "--noinput"]


WORKERS_NICE = 10  # a boot takes seconds and gives way to an admit of milliseconds; subprocess engines inherit the niceness

PROCESSES = (
    Process("postgres", "server", _postgres, stop_signal="INT", stop_seconds=30),
    Process("valkey", "server", _valkey),
    Process("migrate", "once", _migrate, owns_database=True),
    Process("web", "app", _web, stop_seconds=35),
    Process("worker", "app", _celery("worker"), nice=WORKERS_NICE, only="small"),
    Process("wake", "app", _celery("wake"), nice=WORKERS_NICE, only="full"),
    Process("ops", "app", _celery("ops"), nice=WORKERS_NICE, only="full"),
    Process("background", "app", _celery("background"), nice=WORKERS_NICE, only="full"),
    Process("health", "app", _celery("health"), only="full"),
    Process("keeper", "app", _celery("keeper"), owns_database=True, nice=WORKERS_NICE),
    Process("beat", "app", _celery("beat"), only="full"),
    Process("prepare", "step", lambda: _module("config.local.prepare"), owns_database=True),
    Process("await_workers", "step", lambda: _module("config.local.await_workers")),
    Process("stand_down", "step", lambda: _module("config.local.stand_down")),
)
BY_NAME = {process.name: process for process in PROCESSES}


def of_kind(*kinds: str, edition: Edition) -> list[Process]:
    """The edition's processes of the given kinds, in starting order."""
    return [process for process in PROCESSES if process.kind in kinds and process.only in (None, edition)]


def environment(process: Process, base: Mapping[str, str]) -> dict[str, str]:
    """The variables of `base` for the process, without the owner's database URL unless the process needs the URL.

    A process with `only` always gets its own edition, whatever `base` says: during a switch, both editions may run.
    """
    changed = {**base, "ORCH_PROCESS": process.name, "PYTHONUNBUFFERED": "1"}
    if process.only:
        changed["ORCH_PROCESSES"] = process.only
    if not process.owns_database:
        changed["ORCH_DATABASE_OWNER_URL"] = ""
    return changed


def become(process: Process) -> NoReturn:
    """Execute `process` in place of the current process; does not return. Raises Refused."""
    argv = settle(process)
    os.execve(argv[0], argv, os.environ)


def settle(process: Process) -> list[str]:
    """Give the current process the environment, user and niceness of `process`; return the command line. Raises Refused."""
    argv = process.command()
    identity = postgres.identity(home()) if process.name == "postgres" else {}
    if process.kind == "server":
        os.chdir("/")  # PostgreSQL's user may have no access to the current folder
    if identity:
        _change_user(identity)
    if os.environ.get("SUPERVISOR_ENABLED"):
        die_with_parent(getattr(signal, f"SIG{process.stop_signal}"))
    if process.nice and _setting("engine_backend") != "docker":  # dockerd is not nice: workers would starve beside dockerd
        give_way(process.nice)
    os.environ.update(environment(process, os.environ))
    return argv


def _change_user(identity: dict[str, Any]) -> None:
    os.setgroups(identity["extra_groups"])
    os.setgid(identity["group"])
    os.setuid(identity["user"])


def give_way(nice: int) -> None:
    """Add `nice` to our niceness, and to our session's if we lead the session: Linux divides processors among sessions first."""
    os.nice(nice)
    if nice and os.getsid(0) == os.getpid():
        with suppress(OSError):
            Path("/proc/self/autogroup").write_text(str(nice))


def die_with_parent(number: int) -> None:
    """Have the kernel send us signal `number` when our parent dies: a killed supervisor then leaves nothing running."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, number, 0, 0, 0)


def procfile() -> str:
    """The Procfile's text: the processes of `full`, for a larger fleet with its own PostgreSQL and Valkey."""
    run = "env ORCH_PROCESSES=full python -m config.processes exec"
    lines = [f"{process.name}: {run} {process.name}\n" for process in of_kind("app", edition="full")]
    return "".join([f"release: {run} migrate\n", *lines])


def main(arguments: list[str]) -> int:
    match arguments:
        case ["exec", name] if name in BY_NAME:
            become(BY_NAME[name])
        case ["procfile"]:
            sys.stdout.write(procfile())
        case ["procfile", "--check"]:
            if Path("Procfile").read_text() != procfile():
                print("Procfile is out of date; rewrite it with: python -m config.processes procfile > Procfile", file=sys.stderr)
                return 1
        case _:
            print(f"usage: python -m config.processes exec {{{','.join(BY_NAME)}}} | procfile [--check]", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except Refused as refused:
        sys.exit(f"processes: {refused}")
