"""The one list of processes: the supervisor of `make run`, the Procfile and the image's entry point all read it.

python -m config.processes exec NAME     become that process
python -m config.processes procfile      print the Procfile
"""

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from config import addresses, postgres, valkey
from config.embedded import Refused, home


@dataclass(frozen=True)
class Process:
    """One long-running process, or (`once`) a step that ends by itself.

    `command` is called in the process itself, just before it turns into that program; `stop_seconds` is the grace
    between `stop_signal` and SIGKILL. `nice` is added to its niceness: whoever has time gives way to `web`.
    """

    name: str
    kind: Literal["server", "app", "once"]
    command: Callable[[], list[str]]
    stop_signal: Literal["TERM", "INT"] = "TERM"
    stop_seconds: int = 15
    owns_database: bool = False
    nice: int = 0


def _setting(name: str) -> str:
    """Value of `ORCH_<NAME>` as text; `config.settings` checks it once the program is up."""
    return os.environ.get(f"ORCH_{name.upper()}") or settings_defaults()[f"ORCH_{name.upper()}"]


def settings_defaults() -> dict[str, str]:
    """Defaults of the settings that command lines are made of. The supervisor hands them down: importing them is slow."""
    from config.env import Env

    names = (
        "bind",
        "port",
        "web_workers",
        "web_threads",
        "engine_backend",
        "wake_concurrency",
        "ops_concurrency",
        "background_concurrency",
    )
    return {f"ORCH_{name.upper()}": str(Env.model_fields[name].default) for name in names}


def _module(name: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", name, *arguments]


def _web() -> list[str]:
    size = ["--workers", _setting("web_workers"), "--threads", _setting("web_threads"), "--worker-class", "config.server.Worker"]
    limits = ["--timeout", "60", "--graceful-timeout", "30", "--keep-alive", "5", "--no-control-socket", "--preload"]
    return _module("gunicorn", "config.wsgi", *size, *limits, "--bind", addresses.listen(_setting("bind"), _setting("port")))


def _worker(queue: str, threads: str) -> Callable[[], list[str]]:
    # One task at a time per thread and nothing reserved: a waiting message is there for whoever is free. Gossip, mingle
    # and heartbeats between workers only cost traffic; nobody listens to them.
    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--prefetch-multiplier", "1"]
    return lambda: _module(
        "celery", "-A", "config", "worker", "-n", f"{queue}@%h", "-Q", queue, "-P", "threads", "-c",
        threads if threads.isdigit() else _setting(threads), *quiet,
    )  # fmt: skip


def _beat() -> list[str]:
    home().mkdir(parents=True, exist_ok=True)
    return _module("celery", "-A", "config", "beat", "-s", str(home() / "beat-schedule"))


def _postgres() -> list[str]:
    return postgres.argv(home())


def _valkey() -> list[str]:
    return valkey.argv(home())


def _migrate() -> list[str]:
    return [sys.executable, "manage.py", "migrate", "--noinput"]


WORKERS_NICE = 10  # a boot takes seconds, an admit milliseconds; engines that are processes of a worker inherit it

PROCESSES = (
    Process("postgres", "server", _postgres, stop_signal="INT", stop_seconds=30),
    Process("valkey", "server", _valkey),
    Process("migrate", "once", _migrate, owns_database=True),
    Process("web", "app", _web, stop_seconds=35),
    Process("wake", "app", _worker("wake", "wake_concurrency"), nice=WORKERS_NICE),
    Process("ops", "app", _worker("lifecycle", "ops_concurrency"), nice=WORKERS_NICE),
    Process("background", "app", _worker("background", "background_concurrency"), nice=WORKERS_NICE),
    Process("health", "app", _worker("health", "2")),
    Process("keeper", "app", _worker("keeper", "1"), owns_database=True, nice=WORKERS_NICE),
    Process("beat", "app", _beat),
)


def of_kind(*kinds: str) -> list[Process]:
    return [process for process in PROCESSES if process.kind in kinds]


def environment(process: Process, base: Mapping[str, str]) -> dict[str, str]:
    """What the process gets of `base`: everything, but the owner's database role only where it is needed."""
    changed = {**base, "ORCH_PROCESS": process.name, "PYTHONUNBUFFERED": "1"}
    if not process.owns_database:
        changed["ORCH_DATABASE_OWNER_URL"] = ""
    return changed


def become(process: Process) -> None:
    """Replace this process by that one; does not return. Raises Refused."""
    argv = process.command()
    identity = postgres.identity(home()) if process.name == "postgres" else {}
    if process.kind == "server":
        os.chdir("/")  # the user who runs PostgreSQL may not be allowed where we are
    if identity:
        _change_user(identity)
    if os.environ.get("SUPERVISOR_ENABLED"):
        die_with_parent(getattr(signal, f"SIG{process.stop_signal}"))
    if _setting("engine_backend") != "docker":  # dockerd and containers would not give way, and the workers starve beside them
        give_way(process.nice)
    os.execve(argv[0], argv, environment(process, os.environ))


def _change_user(identity: dict[str, Any]) -> None:
    os.setgroups(identity["extra_groups"])
    os.setgid(identity["group"])
    os.setuid(identity["user"])


def give_way(nice: int) -> None:
    """Add to our niceness; and to our session's when that is ours alone: Linux shares processors out between sessions first."""
    os.nice(nice)
    if nice and os.getsid(0) == os.getpid():
        with suppress(OSError):
            Path("/proc/self/autogroup").write_text(str(nice))


def die_with_parent(number: int) -> None:
    """Have the kernel send us signal `number` when our parent dies, so that a killed supervisor leaves nothing running."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, number, 0, 0, 0)


def procfile() -> str:
    """The Procfile's text: the processes of a deployment that has its own PostgreSQL and Valkey."""
    lines = [f"{process.name}: python -m config.processes exec {process.name}\n" for process in of_kind("app")]
    return "".join(["release: python -m config.processes exec migrate\n", *lines])


def main(arguments: list[str]) -> int:
    by_name = {process.name: process for process in PROCESSES}
    match arguments:
        case ["exec", name] if name in by_name:
            become(by_name[name])
        case ["procfile"]:
            sys.stdout.write(procfile())
        case ["procfile", "--check"]:
            if Path("Procfile").read_text() != procfile():
                print("Procfile is out of date: python -m config.processes procfile > Procfile", file=sys.stderr)
                return 1
        case _:
            print(f"usage: python -m config.processes exec {{{','.join(by_name)}}} | procfile [--check]", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except Refused as refused:
        sys.exit(f"processes: {refused}")
