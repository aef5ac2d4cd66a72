"""`make run`: servers, database and processes under a single supervisor, until Ctrl-C or SIGTERM; afterwards nothing runs.

python -m config.local.launch        PORT (or ORCH_PORT) sets the web server's port, ORCH_HOME the folder
"""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import FrameType

from common import socket_addresses
from config.local import backend_choice, banner, embedded, supervision
from config.local.aside import aside
from config.local.embedded import Refused, Servers, locked
from config.processes import Process, edition, of_kind

HEALTHY_S = 60.0
DRAIN_S = 35.0  # for the web server of an earlier run whose supervisor was killed
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(BaseException):
    """A signal stops the launcher."""


def main() -> int:
    """Run until a signal. Exit code 0 after a clean stop; 1, with a single line on stderr, after a Refused."""
    for number in STOPS:
        signal.signal(number, _on_stop)
    os.umask(0o077)
    code = 0
    try:
        with ExitStack() as cleanup:
            try:
                _run(cleanup)
            except Stopped:
                _say("stopping")
            except Refused as refused:
                code = _fail(refused)
            finally:  # a second Ctrl-C must not interrupt the clean-up
                _ignore_stops()
    except Refused as refused:
        code = _fail(refused)
    if code == 0:
        _say("stopped")
    return code


def _ignore_stops() -> None:
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)


def _on_stop(number: int, frame: FrameType | None) -> None:
    _ignore_stops()
    raise Stopped


def _say(line: str) -> None:
    print(f"roundhouse: {line}", flush=True)


def _fail(refused: Refused) -> int:
    print(f"roundhouse: {refused}", file=sys.stderr, flush=True)
    return 1


def _run(cleanup: ExitStack) -> None:
    """Start everything, print the banner, and wait; every step adds its undoing to `cleanup`. Raises Refused."""
    home, port = _settle_environment()
    embedded.environment(home)  # makes the folders, and refuses an unwritable home
    _hold(cleanup, home)
    processes = of_kind("server", "app", "step", edition=edition())
    _say(f"starting (logs in {home / 'log'})")
    child, backend = _start_servers(cleanup, Servers.missing(home), port, processes)
    supervision.start_step(home, "prepare")
    supervision.load_rest(home)  # while `prepare` runs
    supervision.finish_step(home, "prepare")
    for line in (home / "log" / "prepare.log").read_text(errors="replace").split("\n"):
        if line.startswith("warning: "):
            _say(line)
    cleanup.callback(_stand_down, home)
    cleanup.callback(supervision.stop_group, home, "app")
    api = f"http://{socket_addresses.host(_bind())}:{port}"
    supervision.start_process(home, "app", "web")  # first: workers have no work before `web` answers, and would slow `web` down
    _wait_until_healthy(home, api, {"web"})
    supervision.start_group(home, "app")
    supervision.start_step(home, "await_workers")
    _wait_until_healthy(home, api, {process.name for process in processes if process.kind == "app"})
    supervision.finish_step(home, "await_workers")
    print(banner.render(home, api, _admin_key(home), backend, edition()), flush=True)
    child.wait()
    cleanup.pop_all()
    raise Refused(f"the supervisor ended unexpectedly: see {home / 'log' / 'supervisor.log'}")


def _stand_down(home: Path) -> None:
    supervision.start_step(home, "stand_down")
    supervision.finish_step(home, "stand_down")


def _settle_environment() -> tuple[Path, int]:
    """Fix home and port in the environment of all later processes. Raises Refused."""
    if os.environ.get("ORCH_ENVIRONMENT", "local") != "local":
        raise Refused("`make run` is for local use: unset ORCH_ENVIRONMENT; for production, see docs/operations.md")
    home = embedded.home()
    wanted = os.environ.get("PORT") or os.environ.get("ORCH_PORT") or "8000"
    if not wanted.isdecimal() or not 0 < int(wanted) < 65536:
        raise Refused(f"PORT={wanted} is not a port number (1 to 65535)")
    os.environ.update(ORCH_HOME=str(home), ORCH_PORT=wanted)
    return home, int(wanted)


def _hold(cleanup: ExitStack, home: Path) -> None:
    """Lock the home against a second launcher. Raises Refused if a launcher has the lock."""
    try:
        cleanup.enter_context(locked(home / "run.lock", fcntl.LOCK_EX | fcntl.LOCK_NB))
    except BlockingIOError as error:
        raise Refused(f"{home} is running already; start a second copy with another ORCH_HOME and PORT") from error


def _start_servers(
    cleanup: ExitStack, servers: Servers, port: int, processes: list[Process]
) -> tuple[subprocess.Popen[bytes], str]:
    """Start the supervisor and the servers, after ending those of an earlier run; `manage.py` waits meanwhile.

    Returns the supervisor, with the libraries of `prepare` and `web` imported, and the backend of the engines with its reason.
    The servers answer by then. Raises Refused.
    """
    home = servers.home
    processes = [process for process in processes if process.kind != "server" or process.name in servers.wanted]
    with locked(home / "servers.lock", fcntl.LOCK_EX):
        was_killed = supervision.wait_until_gone(home)
        _check_port(port, patience_s=DRAIN_S if was_killed else 0)
        Servers(home).stop()
        (home / embedded.MARKER).unlink(missing_ok=True)
        servers.prepare()
        with aside(partial(backend_choice.choose, home)) as chosen:
            child = supervision.start(home, processes)
            cleanup.callback(supervision.stop, child)
            if servers.wanted:
                supervision.start_group(home, "server")
            with aside(servers.wait) as wait_for_servers:
                backend, why = chosen()
                supervision.load(home, {"ORCH_ENGINE_BACKEND": backend})
                wait_for_servers()
    return child, f"{backend} ({why})"


def _check_port(port: int, patience_s: float) -> None:
    """Raise Refused unless `port` is free, or becomes free within `patience_s` seconds."""
    deadline = time.monotonic() + patience_s
    while error := _try_port(port):
        if time.monotonic() > deadline:
            raise Refused(f"port {port} is taken ({error}); choose another one: make run PORT=...")
        time.sleep(0.2)


def _bind() -> str:
    return os.environ.get("ORCH_BIND") or "127.0.0.1"


def _try_port(port: int) -> str:
    """Why `port` cannot be used now, or an empty string. Raises Refused if waiting for the port is useless."""
    address = socket_addresses.bare(_bind())
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise Refused(
                    f"cannot listen on {socket_addresses.listen(address, port)}: {error.strerror}; see ORCH_BIND"
                ) from error
            return error.strerror or str(error)
    return ""


def _wait_until_healthy(home: Path, api: str, names: set[str]) -> None:
    """Return when `/health` answers 200 and the processes `names` have stayed up for a second. Raises Refused after HEALTHY_S."""
    deadline = time.monotonic() + HEALTHY_S
    while True:
        found = supervision.inspect(home).items()
        waiting = [name for name, process in found if name in names and process["statename"] != "RUNNING"]
        if not waiting and _is_healthy(api):
            return
        if time.monotonic() > deadline:
            raise Refused(f"not healthy after {HEALTHY_S:.0f} s: see {home / 'log' / (waiting or ['web'])[0]}.log")
        time.sleep(0.1)


def _is_healthy(api: str) -> bool:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(f"{api}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _admin_key(home: Path) -> str:
    return os.environ.get("ORCH_ADMIN_KEY") or embedded.environment(home)["ORCH_ADMIN_KEY"]


if __name__ == "__main__":
    sys.exit(main())
