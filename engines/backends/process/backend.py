"""Engines as processes of the local machine, for a laptop and for tests.

The module `store` describes an engine's folder, the module `launch` the start of an engine.

No verb takes a lock in the worker, because a frozen worker would keep the lock. Every verb is a series of single steps on the
engine's folder. The order of the steps is safe for any interleaving with other workers, and for a death of the worker after any
step. A repeat finishes the work.
"""

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

from engines.backends import log_text, walk
from engines.backends.base import (
    Backend,
    BackendError,
    BackendUnavailable,
    ImageMissing,
    Instance,
    InstanceMissing,
    OnEvicted,
    PortTaken,
    Ref,
    Spec,
    State,
    Usage,
    ignore,
    parse_image,
    refuse_runtime,
)
from engines.backends.process import processes, store
from engines.backends.process.launch import Outcome

CODE = Path(__file__).resolve().parents[3]
MODULES = {"roundhouse-demo-engine": "engines.demo"}  # image name without tag -> module to run for the image
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
PLACE_S = 5.0
# Parallel starts of a worker keep at most half of the processors busy.
_places = threading.BoundedSemaphore(max(1, (os.cpu_count() or 1) // 2))


class SubprocessBackend(Backend):
    """Engines under `root`, with a folder per engine.

    `timeout_s`: seconds for a verb, beyond the grace of a stop. `bind`: address on which engines listen. `catalog`: folder given
    to engines as CATALOG_DIR; None means a folder that does not exist. The backend sets PORT, BIND, SQLITE_DB_PATH and
    CATALOG_DIR itself, and overrules the spec's values.
    """

    name = "subprocess"

    def __init__(self, root: Path, timeout_s: float = 30, *, bind: str = "127.0.0.1", catalog: Path | None = None) -> None:
        self.root = root.absolute()
        self.timeout_s = timeout_s
        self.bind = bind
        self.catalog = catalog or self.root / "catalog"

    def resolve(self, image: str, kept: str = "") -> str:
        module = _module(image)  # every tag means the code of our own checkout
        return f"sha256:{hashlib.sha256(module.encode()).hexdigest()}"

    def create(self, spec: Spec, *, on_evicted: OnEvicted = ignore) -> str:
        refuse_runtime(spec, self.name)
        digest = self.resolve(spec.image)
        folder, incarnation = self._folder(spec.ref.engine_id), spec.ref.incarnation
        with _errors("create"):
            if store.is_doomed(folder):
                raise BackendUnavailable(f"engine {spec.ref.engine_id} is being removed")
            for path in (folder, folder / "data"):
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if incarnation in store.running(folder):
                return digest
            found = store.read_spec(folder, incarnation)
            wanted = found or {"product": spec.product, "image": spec.image, "env": dict(spec.env)}
            if found is None or found["port"] != spec.port:
                store.write_spec(folder, incarnation, {**wanted, "port": spec.port})
        return digest

    def start(self, ref: Ref, *, on_evicted: OnEvicted = ignore) -> None:
        with _errors("start"):
            spec = store.read_spec(self._folder(ref.engine_id), ref.incarnation)
            if spec is None:
                raise _missing(ref)
            with _place():
                outcome, said = self._launch(ref, _module(spec["image"]))
        match outcome:
            case Outcome.STARTED:
                return
            case Outcome.MISSING:
                raise _missing(ref)
            case Outcome.PORT_TAKEN:
                raise PortTaken(f"port {spec['port']} is taken")
            case Outcome.OTHER_RUNS:
                raise BackendError(f"another incarnation of engine {ref.engine_id} is running")
            case Outcome.LOCKED:
                raise BackendUnavailable(f"a process of engine {ref.engine_id} is starting or ending, and makes no progress")
            case _:
                raise BackendError(f"engine {ref.engine_id} could not be started: {said or 'see its log'}")

    def stop(self, ref: Ref, *, grace_s: float) -> None:
        with _errors("stop"):
            self._end(self._folder(ref.engine_id), ref.incarnation, grace_s=grace_s)

    def destroy(self, ref: Ref) -> None:
        folder, incarnation = self._folder(ref.engine_id), ref.incarnation
        with _errors("destroy"):
            (folder / f"{incarnation}.json").unlink(missing_ok=True)  # before the kill, for the reason given in `launch`
            self._end(folder, incarnation, grace_s=0)
            for suffix in (".log", ".pid"):
                (folder / f"{incarnation}{suffix}").unlink(missing_ok=True)

    def remove(self, engine_id: UUID) -> None:
        folder = self._folder(engine_id)
        with _errors("remove"):  # a late worker may still create an instance in the middle: repeat until the folder is gone
            if not processes.wait_until(lambda: self._remove_once(folder), self.timeout_s):
                raise BackendUnavailable(f"the folder of engine {engine_id} could not be removed")

    def observe(self, ref: Ref) -> State:
        try:
            return _state(self._folder(ref.engine_id), ref.incarnation)
        except OSError:
            return State.UNKNOWN

    def list(self) -> Sequence[Instance]:
        with _errors("list"):
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            return [found for entry in self.root.iterdir() for found in self._instances(entry.name)]

    def list_volumes(self) -> set[UUID]:
        """The ids of all engine folders; after an unfinished removal a folder may have no data any more."""
        with _errors("list_volumes"):
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            names = [entry.name for entry in self.root.iterdir() if entry.is_dir()]
        return {UUID(name) for name in names if _is_uuid(name)}

    def measure(self, engine_ids: Collection[UUID], *, budget_s: float) -> Usage:
        with _errors("measure"):
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            volumes = {engine_id: self._folder(engine_id) / "data" for engine_id in engine_ids}
            present = {engine_id: str(path) for engine_id, path in volumes.items() if path.is_dir()}
            found = dict(zip(present, walk.measure(list(present.values()), budget_s), strict=True))
            return Usage.of(engine_ids, found, walk.room([str(self.root)]))

    def identity(self) -> str:
        with _errors("identity"):
            return BOOT_ID.read_text().strip()

    def logs(self, ref: Ref, *, tail: int) -> Sequence[str]:
        with _errors("logs"):
            path = self._folder(ref.engine_id) / f"{ref.incarnation}.log"
            written = store.tail_bytes(path, store.LOG_LIMIT + 1)
        is_longer = len(written) > store.LOG_LIMIT
        return log_text.last_lines(written[is_longer:], tail, is_cut=is_longer and written[:1] != b"\n")

    def _folder(self, engine_id: UUID) -> Path:
        return self.root / str(engine_id)

    def _launch(self, ref: Ref, module: str) -> tuple[int, str]:
        """Run the launcher, which outlives a death of the worker; returns its exit code and the last line of its stderr."""
        path = os.environ.get("PATH", os.defpath)
        order = {
            "folder": str(self._folder(ref.engine_id)),
            "incarnation": ref.incarnation,
            "argv": [sys.executable, "-P", "-m", module],
            "env": {"PATH": path, "PYTHONPATH": str(CODE), "CATALOG_DIR": str(self.catalog)},
            "bind": self.bind,
        }
        launcher = subprocess.Popen(
            [sys.executable, "-P", "-S", "-m", "engines.backends.process.launch"],
            env={"PATH": path, "PYTHONPATH": str(CODE)},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            _, said = launcher.communicate(json.dumps(order).encode(), timeout=self.timeout_s)
        except subprocess.TimeoutExpired as error:
            raise BackendUnavailable(f"engine {ref.engine_id} did not start within {self.timeout_s} s") from error
        return launcher.returncode, said.decode(errors="replace").strip().rpartition("\n")[2]

    def _end(self, folder: Path, incarnation: int, *, grace_s: float) -> None:
        record = store.read_record(folder, incarnation)
        if record and not processes.end(record.process, grace_s=grace_s, timeout_s=self.timeout_s):
            raise BackendUnavailable(f"process {record.process.pid} does not end")

    def _remove_once(self, folder: Path) -> bool:
        """Kill the engine's processes and delete the folder; True when the folder is gone.

        The data is deleted first. Last are the files that make `list` name the engine: a death in the middle thus stays visible.
        """
        try:
            (folder / "doomed").touch(mode=0o600)
            for incarnation in store.running(folder):
                self._end(folder, incarnation, grace_s=0)
            _delete(folder / "data")
            for path in sorted(folder.iterdir(), key=lambda path: (path.name == "doomed", path.suffix == ".json")):
                _delete(path)
            folder.rmdir()
        except FileNotFoundError:  # the folder never existed, or a second worker removes it
            pass
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
        return not folder.exists()

    def _instances(self, name: str) -> Iterator[Instance]:
        """Instances in the folder `name` of the root; none if the folder belongs to no engine."""
        if not _is_uuid(name):
            return
        engine_id = UUID(name)
        folder = self._folder(engine_id)
        for incarnation in store.incarnations(folder):
            state = _state(folder, incarnation)
            if state is not State.ABSENT:  # destroyed since the call of `incarnations`
                yield Instance(Ref(engine_id, incarnation), state, _port(folder, incarnation, state))


def _is_uuid(name: str) -> bool:
    try:
        return str(UUID(name)) == name
    except ValueError:
        return False


def _state(folder: Path, incarnation: int) -> State:
    record = store.read_record(folder, incarnation)
    if record and processes.is_alive(record.process):
        return State.RUNNING
    if store.read_spec(folder, incarnation) is None:
        return State.ABSENT
    return State.EXITED if record else State.CREATED


def _port(folder: Path, incarnation: int, state: State) -> int | None:
    """The current port of a running instance, else the port of the next start: a changed spec counts from the next start."""
    record = store.read_record(folder, incarnation)
    if record and state is State.RUNNING:
        return record.port
    spec = store.read_spec(folder, incarnation)
    return spec["port"] if spec else None


def _module(image: str) -> str:
    module = MODULES.get(parse_image(image).repository)
    if module is None:
        raise ImageMissing(f"no image {image}: the subprocess backend has {', '.join(MODULES)}")
    return module


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _missing(ref: Ref) -> InstanceMissing:
    return InstanceMissing(f"engine {ref.engine_id} has no incarnation {ref.incarnation}")


@contextmanager
def _place() -> Iterator[None]:
    """Wait for a place among the worker's parallel starts; after PLACE_S seconds, go on without a place."""
    has_place = _places.acquire(timeout=PLACE_S)
    try:
        yield
    finally:
        if has_place:
            _places.release()


@contextmanager
def _errors(verb: str) -> Iterator[None]:
    """Turn errors of the operating system (no space, no permission, too many processes) into a retryable BackendUnavailable."""
    try:
        yield
    except OSError as error:
        raise BackendUnavailable(f"{verb}: {error}") from error
