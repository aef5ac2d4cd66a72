"""What `make run` takes of a machine: the seconds of its second start, its memory, its disk space, and the growth per engine.

Memory is PSS ("proportional set size"): PSS divides a shared page among the processes sharing the page. The sum over all
processes thus counts every page once.
"""

import contextlib
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
from django.core.management.base import CommandError

from bench import containers, load
from bench.own_deployment import Own

START_S = 6.0  # limit of the second start, until `/health` answers
SMALL_MB = 450.0  # limit of all processes of the small edition, without engines
IDLE_S, IDLE_CPU_S = 5.0, 0.5  # idle: all processes together use less than IDLE_CPU_S in IDLE_S
PATIENCE_S = 180.0
UP = "Roundhouse is up"
MB = 1024 * 1024


@dataclass(frozen=True)
class Footprint:
    """Of a run: PSS by process in MB, memory of all engines in MB, bytes on disk without engines, and of all engines."""

    processes: list[tuple[str, float]]
    engines_mb: float
    home_bytes: int
    engines_bytes: int

    @property
    def total_mb(self) -> float:
        return sum(mb for _, mb in self.processes)


# -- Runs --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """A temporary `make run` with all processes up, the name of its deployment, and the seconds of its second start."""

    own: Own
    deployment: str
    start_s: float


@contextlib.contextmanager
def second_run(edition: str, backend: str) -> Iterator[Run]:
    """Start `make run` for the second time, in a temporary home; stop the run and delete everything afterwards.

    `backend` is the backend of the engines; if empty, `make run` chooses. Raises CommandError.
    """
    deployment = f"bench-{secrets.token_hex(4)}"
    home = Path(tempfile.mkdtemp(prefix="roundhouse-bench-"))
    home.chmod(0o711)
    chosen = {"ORCH_ENGINE_BACKEND": backend} if backend else {}
    own = Own(home, ORCH_PROCESSES=edition, ORCH_DEPLOYMENT=deployment, ORCH_PORT_MIN="27001", ORCH_PORT_MAX="29999", **chosen)
    try:
        start(own)
        own.stop("launch", patience_s=PATIENCE_S)
        yield Run(own, deployment, start(own))
    finally:
        has_containers = _has_containers(home)  # read before the stop: a stopped run without engines forgets its backend
        own.stop("launch", patience_s=PATIENCE_S)
        if has_containers:
            containers.remove_all(containers.connect(), deployment)
        shutil.rmtree(home, ignore_errors=True)


def _has_containers(home: Path) -> bool:
    """Whether the run's engines live in Docker."""
    file = home / "backend"
    return file.exists() and file.read_text().strip() == "docker"


def start(own: Own) -> float:
    """Start as `make run` does, and wait until every process is up. Returns the seconds until `/health` answered."""
    log = own.log("launch")
    log.parent.mkdir(exist_ok=True)
    log.write_bytes(b"")
    began = time.monotonic()
    own.spawn("launch", "-m", "config.local.launch")
    own.wait()
    took = time.monotonic() - began
    deadline = time.monotonic() + PATIENCE_S
    while UP not in log.read_text():
        if time.monotonic() > deadline:
            raise CommandError(f"`make run` does not come up: {log.read_text()[-2000:]}")
        time.sleep(0.1)
    return took


def wait_until_idle(own: Own) -> None:
    """Return once all processes together used less than IDLE_CPU_S in IDLE_S. Raises CommandError after PATIENCE_S."""
    deadline = time.monotonic() + PATIENCE_S
    before = _cpu_s(own)
    while True:
        time.sleep(IDLE_S)
        now = _cpu_s(own)
        if now - before < IDLE_CPU_S:
            return
        if time.monotonic() > deadline:
            raise CommandError(f"the run does not become idle: {now - before:.1f} s of processor time in {IDLE_S:.0f} s")
        before = now


def _cpu_s(own: Own) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in _processes(own))


def _processes(own: Own) -> list[psutil.Process]:
    """The launcher and all its descendants, in the order of their start."""
    launcher = psutil.Process(own.pid("launch"))
    return sorted([launcher, *launcher.children(recursive=True)], key=lambda process: process.create_time())


def _engine_processes(own: Own) -> set[int]:
    """Process ids of the engines of the subprocess backend, found by their working directory in the home's `engines`.

    Parents are no help: an engine outlives the process by which it was started.
    """
    found = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if Path(process.cwd()).is_relative_to(own.home / "engines"):
                found.add(process.pid)
    return found


# -- Footprints --------------------------------------------------------------------------------------------------------


def inspect(run: Run) -> Footprint:
    """Measure a run once the run is idle. Processes with equal titles, like PostgreSQL's, share a line. Raises CommandError."""
    own = run.own
    wait_until_idle(own)
    engines = _engine_processes(own)
    found: dict[str, list[float]] = {}
    for process in _processes(own):
        if process.pid not in engines:
            found.setdefault(_title(process), []).append(pss_mb(process.pid))
    engines_mb = sum(map(pss_mb, engines))
    lines = [(f"{title} ({len(parts)})" if len(parts) > 1 else title, sum(parts)) for title, parts in found.items()]
    engines_bytes = disk_bytes(own.home / "engines")
    ours_bytes = disk_bytes(own.home) - engines_bytes
    if _has_containers(own.home):
        client = containers.connect()
        guard_mb, engines_mb = containers.memory_mb(client, run.deployment)
        lines.append(("guard's container", guard_mb))
        engines_bytes = containers.volumes_bytes(client, run.deployment)
    return Footprint(lines, engines_mb, ours_bytes, engines_bytes)


def pss_mb(pid: int) -> float:
    """The PSS of a process in MB, 0 for an ended process."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:")), 0.0)


def _title(process: psutil.Process) -> str:
    """The first three words of the command line, without folders; only the name for PostgreSQL and Valkey."""
    if process.name() in ("postgres", "valkey-server"):
        return str(process.name())
    words = [Path(word).name for word in " ".join(process.cmdline()).split()]
    return " ".join(words[:3])


def disk_bytes(folder: Path) -> int:
    """Bytes on disk of all files in `folder`. Linked folders count too, because PostgreSQL's data may lie elsewhere."""
    return sum(path.lstat().st_blocks * 512 for path in _files(folder))


def _files(folder: Path) -> Iterator[Path]:
    for top in (folder, *(entry.resolve() for entry in folder.iterdir() if entry.is_symlink())):
        for place, _, names in os.walk(top):
            yield from (path for name in names if (path := Path(place, name)).exists())


# -- Engines -----------------------------------------------------------------------------------------------------------


def grow(run: Run, count: int) -> tuple[Footprint, Footprint]:
    """The footprints before and after `count` engines are provisioned.

    A first engine is provisioned before both footprints, because the first engine makes Roundhouse open connections.
    """
    load.provision(run.own, load.register(run.own, "first", {}), 1)
    before = inspect(run)
    load.provision(run.own, load.register(run.own, "more", {}), count)
    return before, inspect(run)


# -- Reports -----------------------------------------------------------------------------------------------------------


def report(edition: str, start_s: float, found: Footprint) -> tuple[str, bool]:
    """The table, and whether the limits hold."""
    lines = [f"{mb:8.1f} MB  {name}" for name, mb in found.processes]
    start_holds = start_s <= START_S
    holds = edition != "small" or found.total_mb <= SMALL_MB
    limit = f" (at most {SMALL_MB:.0f}: {_verdict(holds)})" if edition == "small" else ""
    lines += [
        f"{found.total_mb:8.1f} MB  PSS in all, ORCH_PROCESSES={edition}{limit}",
        f"{found.home_bytes / MB:8.1f} MB  on disk",
        f"{start_s:8.1f} s   until the second start answered /health (at most {START_S:.0f}: {_verdict(start_holds)})",
    ]
    return "\n".join(lines), start_holds and holds


def report_engines(count: int, before: Footprint, after: Footprint) -> str:
    """Memory and disk space added per engine, and the number of engines per GB of memory."""
    ours = (after.total_mb - before.total_mb) / count
    engine = (after.engines_mb - before.engines_mb) / count
    disk = (after.home_bytes - before.home_bytes) / count / MB
    engine_disk = (after.engines_bytes - before.engines_bytes) / count / MB
    return "\n".join([
        f"{ours:8.2f} MB  and {disk:.2f} MB on disk: what Roundhouse itself grew by for each of {count} engines",
        f"{engine:8.2f} MB  and {engine_disk:.2f} MB on disk: what each engine takes",
        f"{1024 / max(0.01, ours + engine):8.0f}     engines per GB of memory",
    ])  # fmt: skip


def _verdict(holds: bool) -> str:
    return "PASS" if holds else "FAIL"
