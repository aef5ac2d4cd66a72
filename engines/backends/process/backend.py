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
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any
from uuid import UUID

from engines.backends import log_text, parts, walk
from engines.backends.base import (
    Backend,
    BackendError,
    BackendUnavailable,
    ImageMissing,
    Instance,
    InstanceDiffers,
    InstanceMissing,
    Made,
    OnEvicted,
    OtherRuns,
    Owner,
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

    def create(self, spec: Spec, *, on_evicted: OnEvicted = ignore) -> Made:
        refuse_runtime(spec, self.name)
        digest = self.resolve(spec.image)
        folder, mark = self._folder(spec.ref.engine_id), spec.ref.mark
        with _errors("create"):
            if store.is_doomed(folder):
                raise BackendUnavailable(f"engine {spec.ref.engine_id} is being removed")
            for path in (folder, folder / "data"):
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
            store.keep_owner(folder, {"product": spec.product, "user_id": spec.user_id})
            found = store.read_spec(folder, mark)
            if found and (differs := parts.differing(self._made_of(folder, mark), self._wanted(spec))):
                raise InstanceDiffers(f"the instance differs in {', '.join(differs)}")
            wanted = found or {**asdict(spec.owner), "env": dict(spec.env)}
            if (found is None or found["port"] != spec.port) and mark not in store.running(folder):
                store.write_spec(folder, mark, {**wanted, "port": spec.port})
        return Made(digest, is_new=found is None)

    def start(self, ref: Ref, *, on_evicted: OnEvicted = ignore) -> None:
        with _errors("start"):
            spec = store.read_spec(self._folder(ref.engine_id), ref.mark)
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
                raise OtherRuns(f"another incarnation of engine {ref.engine_id} is running")
            case Outcome.LOCKED:
                raise BackendUnavailable(f"a process of engine {ref.engine_id} is starting or ending, and makes no progress")
            case _:
                raise BackendError(f"engine {ref.engine_id} could not be started: {said or 'see its log'}")

    def stop(self, ref: Ref, *, grace_s: float) -> None:
        with _errors("stop"):
            self._end(self._folder(ref.engine_id), ref.mark, grace_s=grace_s)

    def destroy(self, ref: Ref) -> None:
        with _errors("destroy"):
            self._destroy(self._folder(ref.engine_id), ref.mark)

    def retire(self, engine_id: UUID, *, but: Collection[Ref] = (), grace_s: float) -> Sequence[Ref]:
        with _errors("retire"):
            folder = self._folder(engine_id)
            found = [ref for mark in store.marks(folder) if (ref := Ref.parse(engine_id, mark)) not in but]
            for ref in found:
                self._end(folder, ref.mark, grace_s=grace_s)
                self._destroy(folder, ref.mark)
            return found

    def remove(self, engine_id: UUID) -> None:
        folder = self._folder(engine_id)
        with _errors("remove"):  # a late worker may still create an instance in the middle: repeat until the folder is gone
            if not processes.wait_until(lambda: self._remove_once(folder), self.timeout_s):
                raise BackendUnavailable(f"the folder of engine {engine_id} could not be removed")

    def observe(self, ref: Ref) -> State:
        try:
            return _state(self._folder(ref.engine_id), ref.mark)
        except OSError:
            return State.UNKNOWN

    def list(self, engine_id: UUID | None = None) -> Sequence[Instance]:
        with _errors("list"):
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            names = [str(engine_id)] if engine_id else [entry.name for entry in self.root.iterdir()]
            listeners = processes.listeners()
            return [found for name in names for found in self._instances(name, listeners)]

    def differing(self, instance: Instance, spec: Spec) -> Sequence[str]:
        return parts.differing(instance.made_of, self._wanted(spec))

    def list_volumes(self) -> Mapping[UUID, Owner]:
        """The owners of all engine folders; after an unfinished removal a folder may have no data any more."""
        with _errors("list_volumes"):
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            names = [entry.name for entry in self.root.iterdir() if entry.is_dir()]
            return {UUID(name): _owner(store.read_owner(self.root / name)) for name in names if _is_uuid(name)}

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
            path = self._folder(ref.engine_id) / f"{ref.mark}.log"
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
            "mark": ref.mark,
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

    def _destroy(self, folder: Path, mark: str) -> None:
        (folder / f"{mark}.json").unlink(missing_ok=True)  # before the kill, for the reason given in `launch`
        self._end(folder, mark, grace_s=0)
        for suffix in (".log", ".pid"):
            (folder / f"{mark}{suffix}").unlink(missing_ok=True)

    def _wanted(self, spec: Spec) -> dict[str, str]:
        """What an instance of the spec has to be made of, as `Instance.made_of` has it."""
        return {**parts.of_environment(spec.env), "address": self.bind, "mounts": str(self.catalog)}

    def _made_of(self, folder: Path, mark: str) -> dict[str, str]:
        """What an instance is made of: an instance that does not run gets its address and catalog at its next start."""
        spec = store.read_spec(folder, mark)
        if spec is None:
            return {}
        address, catalog = self.bind, str(self.catalog)
        record = store.read_record(folder, mark)
        if record and record.bind and processes.is_alive(record.process):
            address, catalog = record.bind, record.catalog
        return {**parts.of_environment(spec["env"]), "address": address, "mounts": catalog}

    def _end(self, folder: Path, mark: str, *, grace_s: float) -> None:
        record = store.read_record(folder, mark)
        if record and not processes.end(record.process, grace_s=grace_s, timeout_s=self.timeout_s):
            raise BackendUnavailable(f"process {record.process.pid} does not end")

    def _remove_once(self, folder: Path) -> bool:
        """Kill the engine's processes and delete the folder; True when the folder is gone.

        The data is deleted first. Last are the files that make `list` name the engine: a death in the middle thus stays visible.
        """
        try:
            (folder / "doomed").touch(mode=0o600)
            for mark in store.running(folder):
                self._end(folder, mark, grace_s=0)
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

    def _instances(self, name: str, listeners: processes.Listeners) -> Iterator[Instance]:
        """Instances in the folder `name` of the root; none if the folder belongs to no engine."""
        if not _is_uuid(name):
            return
        engine_id = UUID(name)
        folder = self._folder(engine_id)
        for mark in store.marks(folder):
            state = _state(folder, mark)
            if state is not State.ABSENT:  # destroyed since the call of `marks`
                made_of = self._made_of(folder, mark)
                owner = _owner(store.read_spec(folder, mark) or {})
                yield Instance(Ref.parse(engine_id, mark), state, _port(folder, mark, state, listeners), made_of, owner)


def _is_uuid(name: str) -> bool:
    try:
        return str(UUID(name)) == name
    except ValueError:
        return False


def _owner(kept: Mapping[str, Any]) -> Owner:
    return Owner(kept.get("product", ""), kept.get("user_id", ""), kept.get("image", ""))


def _state(folder: Path, mark: str) -> State:
    record = store.read_record(folder, mark)
    if record and processes.is_alive(record.process):
        return State.RUNNING
    if store.read_spec(folder, mark) is None:
        return State.ABSENT
    return State.EXITED if record else State.CREATED


def _port(folder: Path, mark: str, state: State, listeners: processes.Listeners) -> int | None:
    """The port on which a running instance listens, if it does; else the port of the next start, by the present spec."""
    record = store.read_record(folder, mark)
    if record and state is State.RUNNING:
        return record.port if processes.listens(record.process.pid, record.port, listeners) else None
    spec = store.read_spec(folder, mark)
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
    return InstanceMissing(f"engine {ref.engine_id} has no incarnation {ref.mark}")


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
