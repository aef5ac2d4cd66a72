"""The contract between the fleet and the backends, which run engines.

A backend runs *instances*. An instance is an incarnation of an engine: a process or a container, made from a spec, on the
engine's volume. The volume outlives the instance. Instances carry the engine's id and the incarnation as labels, and the backend
finds instances by those labels alone. A backend keeps no state of its own, because a crash could lose the state.

Every verb may be repeated, at any time, by any number of workers, also after a crash in the middle of the verb. A repeat returns
quietly when the work is already done. No verb touches the registry. Every verb ends within `timeout_s` seconds (a stop takes its
grace in addition) or raises `BackendUnavailable`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Self
from uuid import UUID

from common import image_references
from common.image_references import Reference

MB = 2**20
INNER_PORT = 8000  # the port on which an engine listens inside a container, which has its own address


class BackendError(Exception):
    """The backend could not carry out the call."""

    code = "backend_error"
    advice = "The runtime refused: remove the cause that it names, then repeat the request."  # for operators
    retryable = False  # True: the worker repeats the attempt by itself


class BackendUnavailable(BackendError):
    """The runtime did not answer in time, and the state of its instances is unknown."""

    code = "backend_unavailable"
    advice = "The runtime did not answer in time, or could not work: check that it runs, has room and is not overloaded."
    retryable = True


class ImageMissing(BackendError):
    """The runtime has no image with the name in the spec."""

    code = "image_missing"
    advice = "The engines' host has no image of this name: build or pull the image there, then repeat the request."


class ImageMismatch(BackendError):
    """The runtime answered with an image that does not have the name in the spec. No instance was made of the image."""

    code = "image_mismatch"
    advice = (
        "The runtime answered with an image of another name, and no engine was made of it: check which names the image has on the"
        " engines' host, then repeat the request."
    )


class PortTaken(BackendError):
    """Another process uses the instance's port. The caller picks the next port, then calls `create` and `start` again."""

    code = "port_taken"
    advice = "Something else uses the engine's port: choose a free range (ORCH_PORT_MIN, ORCH_PORT_MAX), then repeat the request."


class InstanceMissing(BackendError):
    """The instance to start was never created, or somebody removed it since. The next attempt creates the instance again."""

    code = "instance_missing"
    advice = "Something removed the engine's instance before it was started: find out what, then repeat the request."
    retryable = True


class NetworkFull(BackendError):
    """No network has a free address, and the runtime cannot add a network."""

    code = "network_full"
    advice = "No network has a free address: give the runtime more or larger address pools."


class NetworkUnguarded(BackendError):
    """No instance starts, because the network guard, which keeps engines apart, is not in force."""

    code = "network_unguarded"
    advice = (
        "No engine starts, because the guard that keeps engines apart is not in force: check that the guard's image exists and"
        " that the guard's container runs."
    )


class RuntimeMissing(BackendError):
    """The host lacks the container runtime of the spec, and no other container runtime stands in."""

    code = "runtime_missing"
    advice = (
        "The engines' host lacks the container runtime in which the engine has to run: add it to the configuration of the host's"
        " daemon, or choose another in the product's policy."
    )


class DiskFull(BackendError):
    """The runtime's disk is full."""

    code = "disk_full"
    advice = "The disk of the engines' host is full: free space there, then repeat the request."


class QuotaMissing(BackendError):
    """The disk of the engines' host has no project quotas."""

    code = "quota_missing"
    advice = "The disk of the engines' host has no project quotas: mount it as XFS with pquota, or unset ORCH_ENGINE_DISK_QUOTA."


class ImageUnfit(BackendError):
    """The image declares volumes that an engine cannot have, or labels or a command of many thousand characters."""

    code = "image_unfit"
    advice = (
        "The image declares volumes that an engine cannot have, or labels or a command of many thousand characters: build the"
        " image without them; engines keep their data in /data."
    )


class State(StrEnum):
    """The state of an instance, as reported by the runtime."""

    ABSENT = "absent"  # the runtime answered: the instance does not exist
    CREATED = "created"  # made, not started yet
    RUNNING = "running"
    EXITED = "exited"  # was started before, does not run now
    UNKNOWN = "unknown"  # the runtime did not answer; callers never act on this state


@dataclass(frozen=True)
class Ref:
    """Names an instance by its engine and incarnation."""

    engine_id: UUID
    incarnation: int


@dataclass(frozen=True)
class Limits:
    """Ceilings of an instance. None, or more than the deployment's ceiling, means the deployment's ceiling."""

    memory_mb: int | None = None
    cpus: float | None = None
    pids: int | None = None  # processes and threads
    disk_mb: int | None = None  # of the volume, and of a single file; unlike the others, it may exceed the deployment's


Egress = str | Sequence[str]
"""Where instances may open connections: INTERNET, NO_EGRESS, or destinations with ports, as `common.destinations` reads them."""

INTERNET, NO_EGRESS = "internet", "none"


@dataclass(frozen=True)
class Spec:
    """Everything a backend needs to make an instance."""

    ref: Ref
    product: str  # slug, a label
    image: str
    port: int  # on the host: an engine process listens on it, a container has its port 8000 published on it
    env: Mapping[str, str] = field(default_factory=dict)
    limits: Limits = Limits()  # backends without ceilings ignore them
    digest: str = ""  # of the image of an earlier instance, or empty; a new instance is made from `resolve(image, digest)`
    runtime: str = ""  # container runtime of a new instance, by the host's name for it; empty: the deployment's first
    egress: Egress = INTERNET  # holds for all instances of the product; only `docker` enforces it


@dataclass(frozen=True)
class Instance:
    """An instance in the answer of `list`."""

    ref: Ref
    state: State
    port: int | None = None


def parse_image(image: str) -> Reference:
    """The parts of an image's name. Raises ImageMissing for a text outside the grammar: no image can have such a name."""
    try:
        return image_references.parse(image)
    except ValueError as error:
        raise ImageMissing(f"no image {image!r}: the engine's version {error}") from error


@dataclass(frozen=True)
class Usage:
    """The disk space in MB of each measured volume, and the disk that has the volumes.

    `at_least` has the volumes with more files than could be counted in time: they take what `used_mb` says, or more.
    `free_share` is the free share of the disk, from 0 to 1: of its space or of its inodes, whichever is smaller.
    """

    used_mb: Mapping[UUID, int]
    at_least: frozenset[UUID] = frozenset()
    total_mb: int = 0
    free_mb: int = 0
    free_share: float = 1.0

    @classmethod
    def of(cls, engine_ids: Iterable[UUID], found: Mapping[UUID, tuple[int, bool]], disk: tuple[int, int, float]) -> Self:
        """The usage, from what `walk` measured: the bytes of each volume that is there, and the bytes of the disk."""
        used_mb = {engine_id: -(-found.get(engine_id, (0, True))[0] // MB) for engine_id in engine_ids}
        at_least = frozenset(engine_id for engine_id, (_, is_whole) in found.items() if not is_whole)
        total, free, share = disk
        return cls(used_mb, at_least, total // MB, free // MB, share)


def instance_name(deployment: str, engine_id: UUID) -> str:
    """The runtime's name for an engine's running instance (if instances have names), also its host name on the network."""
    return f"{deployment}-{engine_id}"


def refuse_runtime(spec: Spec, backend: str) -> None:
    """For a backend without container runtimes: raise RuntimeMissing for a spec that names one."""
    if spec.runtime:
        raise RuntimeMissing(f"backend {backend} has no container runtimes, and the engine's product asks for {spec.runtime}")


OnEvicted = Callable[[str], None]  # receives the runtime's id of the evicted container


def ignore(_container: str) -> None:
    """For callers without a use for the evicted containers."""


class Backend(ABC):
    """A place where engines run. The module's docstring lists the promises of every verb."""

    name: str

    @abstractmethod
    def resolve(self, image: str, kept: str = "") -> str:
        """The digest of the image for an instance, as `sha256:<64 hex digits>`.

        `kept` is an earlier answer, or empty. While the runtime still has the image `kept`, the answer is `kept`. Otherwise the
        answer is the digest of the image now named `image`. A digest in place of a name stands for itself.

        Raises ImageMissing, also for a text outside the grammar of `common.image_references`; ImageMismatch, BackendUnavailable.
        """

    def tidy(self) -> int:
        """Remove shared objects, like networks, when no instance needs them any more; returns how many were removed.

        May run at any time, in parallel with every verb. Raises BackendUnavailable.
        """
        return 0

    def join(self) -> int:
        """Connect our own processes, and all other permitted callers of engines, to the engines' networks.

        Returns how many connections were missing. May run at any time; `tidy` includes `join`. Raises BackendUnavailable.
        """
        return 0

    def confine(self, look_up: Callable[[Set[str]], Mapping[str, Egress]]) -> bool:
        """Make running instances obey what their products allow now; returns whether anything had to be changed.

        `look_up` takes the slugs of products and returns where the instances of each may open connections; the instances of a
        product that is left out may open none. May run at any time, in parallel with every verb. Raises BackendUnavailable.
        """
        return False

    def stand_down(self) -> None:  # noqa: B027 (most backends keep nothing)
        """End the backend's helpers, which run beside its instances, when the whole fleet of the host goes down.

        Before: no instance runs. After: nothing of the deployment runs; the next `start` starts the helpers again. Raises
        BackendUnavailable.
        """

    @abstractmethod
    def create(self, spec: Spec, *, on_evicted: OnEvicted = ignore) -> str:
        """Make the instance without starting it, and the engine's volume if missing; returns the digest of the instance's image.

        A container without our labels may have the engine's name. The backend removes the container to make the instance, and
        calls `on_evicted` with the runtime's id of every removed container, also when the verb fails afterwards.

        Before: nothing is required. After: `observe` says CREATED for a new instance. An existing instance with the same labels
        is adopted in any state, and keeps its state. While an adopted instance does not run, its port follows `spec.port`, and
        the most that a file may take follows `spec.limits`; if the change takes a new instance, `observe` says CREATED.

        An adopted instance keeps its container runtime. A new instance runs in `spec.runtime` or not at all.

        Raises ImageMissing, ImageMismatch, ImageUnfit, QuotaMissing, RuntimeMissing, NetworkFull, DiskFull, BackendUnavailable,
        BackendError.
        """

    @abstractmethod
    def start(self, ref: Ref, *, on_evicted: OnEvicted = ignore) -> None:
        """Start the instance, without waiting until the engine is healthy: callers probe its health over HTTP.

        `on_evicted`: as in `create`.

        Before: the instance exists, else InstanceMissing. After: `observe` says RUNNING, or EXITED if the engine ended by itself
        at once. A repeat on a running instance does nothing. Two instances of an engine never run at the same time: `start`
        raises BackendError while a second instance runs. Instances of the engine that do not run may be gone afterwards; `create`
        makes them again. Raises PortTaken, RuntimeMissing, NetworkFull, NetworkUnguarded, DiskFull,
        BackendUnavailable.
        """

    @abstractmethod
    def stop(self, ref: Ref, *, grace_s: float) -> None:
        """Send the instance SIGTERM, and SIGKILL if it still runs after `grace_s` seconds.

        Before: nothing is required; an absent or stopped instance stays as it is. After: the instance does not run, its volume
        is as the engine left it, and `start` starts the instance again. Raises BackendUnavailable, BackendError.
        """

    @abstractmethod
    def destroy(self, ref: Ref) -> None:
        """Kill the instance at once and remove it; the engine's volume stays.

        Before: nothing is required. After: `observe` says ABSENT, `list` leaves the instance out, and `logs` has no lines.
        Other incarnations of the engine are not changed. A repeat, or a call for an instance that never existed, changes nothing.
        Raises BackendUnavailable, BackendError. After an error the instance may have ended already; a repeat removes it.
        """

    @abstractmethod
    def remove(self, engine_id: UUID) -> None:
        """Destroy every instance of the engine, and its volume with all data in it.

        Before: nothing is required. After: `list` names no instance of the engine, and the volume is gone. A repeat, or a call
        for an engine that never existed, changes nothing. Raises BackendUnavailable, BackendError. After an error a part of the
        engine may be gone already: as long as any part is left, `list` names the engine, or a repeat finds the part by the
        engine's id.
        """

    @abstractmethod
    def observe(self, ref: Ref) -> State:
        """The instance's state now.

        Before: nothing is required. After: nothing has changed, after any number of calls. ABSENT means that the runtime answered
        and does not have the instance. UNKNOWN means that the runtime did not answer, or not in time. Raises nothing.
        """

    @abstractmethod
    def list(self) -> Sequence[Instance]:
        """Every instance of the deployment, in any order.

        Before: nothing is required. After: nothing has changed, after any number of calls. An instance made or removed during the
        call may be in the list or not. An empty list means that the deployment has no instance: a runtime without an answer
        raises BackendUnavailable, and an error as the answer raises BackendError.
        """

    @abstractmethod
    def list_volumes(self) -> set[UUID]:
        """The ids of all engines of the deployment with a volume, with or without an instance.

        Before: nothing is required. After: nothing has changed. Raises BackendUnavailable, BackendError.
        """

    @abstractmethod
    def measure(self, engine_ids: Collection[UUID], *, budget_s: float) -> Usage:
        """Measure the volumes of the engines, within `budget_s` seconds for all, and the disk that has the volumes.

        Before: nothing is required; an engine without a volume takes 0 MB. After: nothing has changed, after any number of calls.
        Counts what files take on the disk, rounded up: a sparse file its blocks, a file with many names once, an empty file its
        inode, a symbolic link never its target. Nothing that runs inside an instance is asked or believed. A file without a name
        that an instance holds open is not seen. Raises BackendUnavailable, also when the measuring is interrupted, and
        BackendError.
        """

    @abstractmethod
    def identity(self) -> str:
        """Names the current run of the host and its runtime; the text changes once the host or the runtime is started again.

        Raises BackendUnavailable.
        """

    @abstractmethod
    def logs(self, ref: Ref, *, tail: int) -> Sequence[str]:
        """The last `tail` lines that the instance wrote, oldest first; empty when it wrote none or is absent.

        Before: nothing is required; an ended instance keeps its lines. After: nothing has changed, after any number of calls.
        Raises BackendUnavailable, BackendError.
        """
