"""The contract between the fleet and the backends, which run engines.

A backend runs *instances*. An instance is an incarnation of an engine: a process or a container, made from a spec, on the
engine's volume. The volume outlives the instance. Instances carry the engine's id and the incarnation as labels, and the backend
finds instances by those labels alone. A backend keeps no state of its own, because a crash could lose the state.

Every verb may be repeated, at any time, by any number of workers, also after a crash in the middle of the verb. A repeat returns
quietly when the work is already done. No verb touches the registry. Every verb ends within `timeout_s` seconds (a stop takes its
grace in addition) or raises `BackendUnavailable`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Self
from uuid import UUID

from common import image_references
from common.image_references import Reference

# re-exported for the callers
from engines.backends.errors import (
    BackendError as BackendError,
    BackendUnavailable as BackendUnavailable,
    DiskFull as DiskFull,
    ImageMismatch as ImageMismatch,
    ImageMissing as ImageMissing,
    ImageUnfit as ImageUnfit,
    InstanceDiffers as InstanceDiffers,
    InstanceMissing as InstanceMissing,
    NetworkFull as NetworkFull,
    NetworkUnguarded as NetworkUnguarded,
    OtherRuns as OtherRuns,
    PortTaken as PortTaken,
    QuotaMissing as QuotaMissing,
    RuntimeMissing as RuntimeMissing,
)
from engines.backends.marks import MARK
from engines.backends.usage import (
    MB as MB,
    Usage as Usage,
)

INNER_PORT = 8000  # the port on which an engine listens inside a container, which has its own address


class State(StrEnum):
    """The state of an instance, as reported by the runtime."""

    ABSENT = "absent"  # the runtime answered: the instance does not exist
    CREATED = "created"  # made, not started yet
    RUNNING = "running"
    EXITED = "exited"  # was started before, does not run now
    UNKNOWN = "unknown"  # the runtime did not answer; callers never act on this state


@dataclass(frozen=True)
class Ref:
    """Names an instance by its engine and incarnation.

    The registry counts incarnations, and counts anew after a restore of its database. The random `token` of an incarnation thus
    tells two incarnations with one number apart. The first incarnation of an engine, and all from before there were tokens, have
    an empty token.
    """

    engine_id: UUID
    incarnation: int
    token: str = ""

    @property
    def mark(self) -> str:
        """Number and token as one text: `2-5f0c9a1be7d3`, or `1` without a token."""
        return f"{self.incarnation}-{self.token}" if self.token else str(self.incarnation)

    @classmethod
    def parse(cls, engine_id: UUID, mark: str) -> Self:
        """The ref with this `mark`. Raises ValueError."""
        found = MARK.fullmatch(mark)
        if found is None:
            raise ValueError(f"no mark of an incarnation: {mark!r}")
        return cls(engine_id, int(found[1]), found[2] or "")


@dataclass(frozen=True)
class Limits:
    """Ceilings of an instance. None, or more than the deployment's ceiling, means the deployment's ceiling."""

    memory_mb: int | None = None
    cpus: float | None = None
    pids: int | None = None  # processes and threads
    disk_mb: int | None = None  # of the volume, and of a single file; unlike the others, it may exceed the deployment's


@dataclass(frozen=True)
class Owner:
    """Whose engine it is: what the runtime keeps beside volumes and instances, for a registry that has lost the engine.

    `product` is a slug, `image` the name of the image that was asked for. A text is empty where the runtime does not have it: a
    volume has no image, and engines from before there were these labels have no user.
    """

    product: str = ""
    user_id: str = ""
    image: str = ""


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
    user_id: str = ""  # a label

    @property
    def owner(self) -> Owner:
        return Owner(self.product, self.user_id, self.image)


@dataclass(frozen=True)
class Instance:
    """An instance in the answer of `list`.

    `port`: where a running instance can be reached, by what the runtime has set up; None for an instance that cannot be reached.
    For an instance that does not run: the port of its next start. `made_of`: what the backend has noted of its making, for
    `Backend.differing`.
    """

    ref: Ref
    state: State
    port: int | None = None
    made_of: Mapping[str, str] = field(default_factory=dict)
    owner: Owner = Owner()

    def serves(self, ref: Ref, port: int) -> bool:
        """Whether this is the instance `ref`, runs, and has the port: then nobody else can answer on the port."""
        return (self.ref, self.state, self.port) == (ref, State.RUNNING, port)


@dataclass(frozen=True)
class Made:
    """The answer of `create`: the digest of the instance's image, and whether the call made the instance."""

    digest: str
    is_new: bool


def parse_image(image: str) -> Reference:
    """The parts of an image's name. Raises ImageMissing for a text outside the grammar: no image can have such a name."""
    try:
        return image_references.parse(image)
    except ValueError as error:
        raise ImageMissing(f"no image {image!r}: the engine's version {error}") from error


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
    def create(self, spec: Spec, *, on_evicted: OnEvicted = ignore) -> Made:
        """Make the instance without starting it, and the engine's volume if missing.

        A container without our labels may have the engine's name. The backend removes the container to make the instance, and
        calls `on_evicted` with the runtime's id of every removed container, also when the verb fails afterwards.

        Before: nothing is required. After: `observe` says CREATED for a new instance. An existing instance with the same labels
        is adopted in any state, and keeps its state, if `differing` finds no difference. While an adopted instance does not run,
        its port follows `spec.port`, and the most that a file may take follows `spec.limits`; if the change takes a new instance,
        `observe` says CREATED.

        An instance that differs is left as it is, and InstanceDiffers names the parts: the caller stops and destroys the
        instance, then calls `create` again. An adopted instance keeps what a policy had asked for when it was made. A new
        instance runs in `spec.runtime` or not at all.

        Raises InstanceDiffers, ImageMissing, ImageMismatch, ImageUnfit, QuotaMissing, RuntimeMissing, NetworkFull, DiskFull,
        BackendUnavailable, BackendError.
        """

    @abstractmethod
    def start(self, ref: Ref, *, on_evicted: OnEvicted = ignore) -> None:
        """Start the instance, without waiting until the engine is healthy: callers probe its health over HTTP.

        `on_evicted`: as in `create`.

        Before: the instance exists, else InstanceMissing. After: `observe` says RUNNING, or EXITED if the engine ended by itself
        at once. A repeat on a running instance does nothing. Two instances of an engine never run at the same time: `start`
        raises OtherRuns while a second instance runs. Instances of the engine that do not run may be gone afterwards; `create`
        makes them again. Raises PortTaken, RuntimeMissing, NetworkFull, NetworkUnguarded, DiskFull, BackendUnavailable, and
        BackendError for any other refusal of the runtime: a new instance may be accepted.
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
    def retire(self, engine_id: UUID, *, but: Collection[Ref] = (), grace_s: float) -> Sequence[Ref]:
        """Stop every instance of the engine except those in `but`, as `stop` does, and remove it; returns what was removed.

        Before: nothing is required. After: `list` names no instance of the engine but those in `but`, which are not changed. The
        volume stays. A repeat, or a call for an engine that never existed, changes nothing. Raises BackendUnavailable,
        BackendError. After an error some of the instances may be gone; a repeat removes the others.
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
    def list(self, engine_id: UUID | None = None) -> Sequence[Instance]:
        """Every instance of the deployment, or of one engine, in any order.

        Before: nothing is required. After: nothing has changed, after any number of calls. An instance made or removed during the
        call may be in the list or not. An empty list means that there is no such instance: a runtime without an answer
        raises BackendUnavailable, and an error as the answer raises BackendError.
        """

    @abstractmethod
    def differing(self, instance: Instance, spec: Spec) -> Sequence[str]:
        """The parts of a listed instance that are not as the spec and the settings say, sorted; empty if all are.

        Parts are `address`, `environment`, `image`, `key`, `limits`, `mounts`, `network`, `profile`, `runtime` and `user`, as far
        as the backend has them, and `unknown` for an instance from before the parts were noted. What a policy asks for is no
        difference: the ceilings of a policy, and its container runtime, are taken as they were when the instance was made.
        Asks the runtime nothing and raises nothing.
        """

    @abstractmethod
    def list_volumes(self) -> Mapping[UUID, Owner]:
        """The owners of all volumes of the deployment, by the engine's id: of engines with and without an instance.

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
