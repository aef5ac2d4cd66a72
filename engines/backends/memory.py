"""Instances that are nothing but their state, for tests of the fleet that need no process and no port.

Beyond the contract a test may make trouble: `unavailable`, `missing_images`, `fail_next()` and `exit()`.
"""

import hashlib
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import RLock
from uuid import UUID

from engines.backends.base import (
    Backend,
    BackendError,
    BackendUnavailable,
    ImageMissing,
    Instance,
    InstanceMissing,
    PortTaken,
    Ref,
    Spec,
    State,
)


@dataclass
class _Kept:
    port: int
    digest: str
    state: State = State.CREATED
    lines: list[str] = field(default_factory=list)


class MemoryBackend(Backend):
    """A runtime inside this process; any thread may call it.

    `unavailable = True`: every verb raises BackendUnavailable and `observe` says UNKNOWN, until it is False again.
    `missing_images`: names that `create` refuses with ImageMissing; every other image is there.
    `volumes`: ids of the engines that have a volume now.
    `boot`: what `identity` says; give it another text to say that the host came back.
    """

    name = "memory"

    def __init__(self) -> None:
        self.unavailable = False
        self.missing_images: set[str] = set()
        self.volumes: set[UUID] = set()
        self.boot = "first"
        self._instances: dict[Ref, _Kept] = {}
        self._failures: defaultdict[str, deque[BackendError]] = defaultdict(deque)
        self._lock = RLock()

    def fail_next(self, verb: str, error: BackendError) -> None:
        """Let the next call of `verb` ("start", say) raise `error` and change nothing; several are used up in order."""
        with self._lock:
            self._failures[verb].append(error)

    def exit(self, ref: Ref) -> None:
        """Let a running instance end by itself, as after a crash."""
        with self._lock:
            self._end(ref, "exited")

    def resolve(self, image: str, kept: str = "") -> str:
        with self._verb("resolve"):
            return self._resolve(image, kept)

    def _resolve(self, image: str, kept: str) -> str:
        if kept and kept not in self.missing_images:
            return kept
        self._check_image(image)
        return _digest(image)

    def create(self, spec: Spec) -> str:
        with self._verb("create"):
            kept = self._instances.get(spec.ref)
            if kept is None:
                kept = self._instances[spec.ref] = _Kept(spec.port, self._resolve(spec.image, spec.digest))
            self.volumes.add(spec.ref.engine_id)
            if kept.state is not State.RUNNING:
                kept.port = spec.port
            return kept.digest

    def start(self, ref: Ref) -> None:
        with self._verb("start"):
            kept = self._instances.get(ref)
            if kept is None:
                raise InstanceMissing(f"engine {ref.engine_id} has no incarnation {ref.incarnation}")
            if kept.state is State.RUNNING:
                return
            for other, found in self._instances.items():
                if found.state is State.RUNNING and other.engine_id == ref.engine_id:
                    raise BackendError(f"incarnation {other.incarnation} of engine {ref.engine_id} is running")
                if found.state is State.RUNNING and found.port == kept.port:
                    raise PortTaken(f"port {kept.port} is taken")
            kept.state = State.RUNNING
            kept.lines.append("started")

    def stop(self, ref: Ref, *, grace_s: float) -> None:
        with self._verb("stop"):
            self._end(ref, "stopped")

    def destroy(self, ref: Ref) -> None:
        with self._verb("destroy"):
            self._instances.pop(ref, None)

    def remove(self, engine_id: UUID) -> None:
        with self._verb("remove"):
            self.volumes.discard(engine_id)
            self._instances = {ref: kept for ref, kept in self._instances.items() if ref.engine_id != engine_id}

    def observe(self, ref: Ref) -> State:
        try:
            with self._verb("observe"):
                kept = self._instances.get(ref)
                return State.ABSENT if kept is None else kept.state
        except BackendError:
            return State.UNKNOWN

    def list(self) -> Sequence[Instance]:
        with self._verb("list"):
            return [Instance(ref, kept.state, kept.port) for ref, kept in self._instances.items()]

    def list_volumes(self) -> set[UUID]:
        with self._verb("list_volumes"):
            return set(self.volumes)

    def identity(self) -> str:
        with self._verb("identity"):
            return self.boot

    def logs(self, ref: Ref, *, tail: int) -> Sequence[str]:
        with self._verb("logs"):
            kept = self._instances.get(ref)
            return kept.lines[-tail:] if kept and tail > 0 else []

    @contextmanager
    def _verb(self, name: str) -> Iterator[None]:
        """One verb at a time, refused where a test asked for that."""
        with self._lock:
            if self.unavailable:
                raise BackendUnavailable("the memory backend is set unavailable")
            if self._failures[name]:
                raise self._failures[name].popleft()
            yield

    def _check_image(self, image: str) -> None:
        if image in self.missing_images:
            raise ImageMissing(f"no image {image}")

    def _end(self, ref: Ref, line: str) -> None:
        kept = self._instances.get(ref)
        if kept and kept.state is State.RUNNING:
            kept.state = State.EXITED
            kept.lines.append(line)


def _digest(image: str) -> str:
    return image if image.startswith("sha256:") else f"sha256:{hashlib.sha256(image.encode()).hexdigest()}"
