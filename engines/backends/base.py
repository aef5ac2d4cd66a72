"""The contract between the fleet and whatever runs engines.

A backend runs *instances*. An instance is one incarnation of an engine: a process or container made from one spec, on the
engine's volume, which outlives it. Instances carry the engine's id and incarnation as labels, and the backend finds them by
those alone: it keeps no state of its own that a crash could lose.

Every verb may be repeated, at any time, by any number of workers, also after a crash in its middle: a repeat that finds the
work done returns quietly. No verb touches the registry. Every verb ends within `timeout_s` (plus the grace of a stop) or raises
`BackendUnavailable`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from uuid import UUID

INNER_PORT = 8000  # what an engine listens on where it has an address of its own


class BackendError(Exception):
    """A verb failed; `retryable` tells whether the worker should make the same attempt again by itself.

    The docstring of each error ends with what somebody who reads it in a row can do.
    """

    code = "backend_error"
    retryable = False


class BackendUnavailable(BackendError):
    """The runtime did not answer in time: nothing is known about its instances. See that it runs and is not overloaded."""

    code = "backend_unavailable"
    retryable = True


class ImageMissing(BackendError):
    """The engine's version names nothing this backend can run. Build or pull the image on the engines' host."""

    code = "image_missing"


class PortTaken(BackendError):
    """Another process has the instance's port; the caller picks the next one, calls `create` with it and `start` again."""

    code = "port_taken"


class InstanceMissing(BackendError):
    """`start` of an instance that was never created, or that somebody removed since. The next attempt creates it again."""

    code = "instance_missing"
    retryable = True


class NetworkFull(BackendError):
    """No network has an address left, and no further network can be made. Give the runtime more or larger address pools."""

    code = "network_full"


class NetworkUnguarded(BackendError):
    """What keeps engines apart is not in force, so none is started. See that the guard's image exists and its container runs."""

    code = "network_unguarded"


class DiskFull(BackendError):
    """The runtime has no space left. Make room on the engines' host, then ask again."""

    code = "disk_full"


class State(StrEnum):
    """What a runtime says of an instance."""

    ABSENT = "absent"  # the runtime answered: there is none
    CREATED = "created"  # made, not started yet
    RUNNING = "running"
    EXITED = "exited"  # ran once, does not run now
    UNKNOWN = "unknown"  # the runtime did not answer; never a reason to act


@dataclass(frozen=True)
class Ref:
    """Names one instance: an incarnation of an engine."""

    engine_id: UUID
    incarnation: int


@dataclass(frozen=True)
class Limits:
    """Ceilings of one instance. None, or more than the deployment's own ceiling, means the deployment's own."""

    memory_mb: int | None = None
    cpus: float | None = None
    pids: int | None = None  # processes and threads


@dataclass(frozen=True)
class Spec:
    """All that a backend needs to make an instance."""

    ref: Ref
    product: str  # slug, a label
    image: str
    port: int  # on the host; the engine listens on it, or it is published to the container's 8000
    env: Mapping[str, str] = field(default_factory=dict)
    limits: Limits = Limits()  # backends without ceilings ignore them
    digest: str = ""  # what an earlier instance was made of: this one, if it has to be made, is made of what `resolve` says of it


@dataclass(frozen=True)
class Instance:
    """An instance as `list` found it."""

    ref: Ref
    state: State
    port: int | None = None


def instance_name(deployment: str, engine_id: UUID) -> str:
    """The name of an engine's running instance where the runtime gives it one; on its network it is a host's name too."""
    return f"{deployment}-{engine_id}"


OnEvicted = Callable[[str], None]


def ignore(_container: str) -> None:
    """For a caller that need not know what was evicted."""


class Backend(ABC):
    """Where engines run. See the module's docstring for what holds for every verb."""

    name: str

    @abstractmethod
    def resolve(self, image: str, kept: str = "") -> str:
        """The image to make an instance of, as `sha256:<64 hex digits>`: `kept`, an earlier answer, while there is such an image;
        else what the name stands for now. A name that is a digest stands for itself.

        Raises ImageMissing, BackendUnavailable.
        """

    def tidy(self) -> int:
        """Remove what the backend made for many instances and none needs any more; how many things that were.

        Safe at any time, next to every verb. Raises BackendUnavailable.
        """
        return 0

    def join(self) -> int:
        """Give our own processes, and whoever else may call engines, their way to the engines; how many were missing one.

        Safe at any time; `tidy` does it too. Raises BackendUnavailable.
        """
        return 0

    def stand_down(self) -> None:  # noqa: B027 (most backends keep nothing)
        """End what the backend keeps running beside its instances, when the whole fleet of the host goes down.

        Before: no instance runs. After: nothing of the deployment runs; the next `start` brings up what it needs. Raises
        BackendUnavailable.
        """

    @abstractmethod
    def create(self, spec: Spec, *, on_evicted: OnEvicted = ignore) -> str:
        """Make the instance, and the engine's volume when it has none, without starting it; returns the digest it is made of.

        `on_evicted` is called with the runtime's id of each thing that stood in the engine's name without our labels and was
        removed for the instance, also when the verb fails afterwards.

        Before: nothing is required. After: `observe` says CREATED, or what it said before if the instance was there already
        (an instance with these labels is adopted, whatever state it is in; its port follows `spec.port` while it does not
        run, and where that takes a new instance it says CREATED). Raises ImageMissing, NetworkFull, DiskFull,
        BackendUnavailable, BackendError.
        """

    @abstractmethod
    def start(self, ref: Ref, *, on_evicted: OnEvicted = ignore) -> None:
        """Start the instance; healthy is another question, asked over HTTP.

        `on_evicted`: as of `create`.

        Before: it exists, else InstanceMissing. After: `observe` says RUNNING, or EXITED if the engine ended by itself at once.
        No two instances of one engine ever run at a time: BackendError while another one does. Others that do not run may be
        gone afterwards; `create` makes them again. Raises PortTaken, NetworkFull,
        NetworkUnguarded, DiskFull, BackendUnavailable. A repeat on a running instance does nothing.
        """

    @abstractmethod
    def stop(self, ref: Ref, *, grace_s: float) -> None:
        """Ask the instance to end (SIGTERM), and end it after `grace_s` seconds (SIGKILL).

        Before: nothing is required; an absent or stopped instance is left as it is. After: it does not run, its volume is
        as the engine left it, and `start` starts it again. Raises BackendUnavailable, BackendError.
        """

    @abstractmethod
    def destroy(self, ref: Ref) -> None:
        """End the instance at once and remove it; the engine's volume stays.

        Before: nothing is required. After: `observe` says ABSENT, and `list` and `logs` know nothing of it. Other incarnations
        of the engine are left alone. A repeat, or an instance that never was, changes nothing. Raises BackendUnavailable,
        BackendError; it may have ended by then, and the repeat removes it.
        """

    @abstractmethod
    def remove(self, engine_id: UUID) -> None:
        """Destroy every instance of the engine, and its volume with all data in it.

        Before: nothing is required. After: `list` names no instance of the engine and the volume is gone. A repeat, or an engine
        that never was, changes nothing. Raises BackendUnavailable, BackendError; part of it may be gone by then: as long as
        anything is left `list` names the engine or a repeat finds it by its id.
        """

    @abstractmethod
    def observe(self, ref: Ref) -> State:
        """The instance's state now.

        Before: nothing is required. After: nothing has changed, however often it is asked. ABSENT is the runtime's word for it;
        one that does not answer, or not in time, makes it UNKNOWN. Raises nothing.
        """

    @abstractmethod
    def list(self) -> Sequence[Instance]:
        """Every instance of this deployment, in no order.

        Before: nothing is required. After: nothing has changed, however often it is asked; what is made or removed meanwhile may
        be in it or not. An empty list means that there are none: a runtime that does not answer raises BackendUnavailable,
        one that answers with an error BackendError.
        """

    @abstractmethod
    def list_volumes(self) -> set[UUID]:
        """Every engine of this deployment that has a volume, whether or not it has an instance.

        Before: nothing is required. After: nothing has changed. Raises BackendUnavailable, BackendError.
        """

    @abstractmethod
    def identity(self) -> str:
        """Names this run of the host and its runtime: another text once either has been started again.

        Raises BackendUnavailable.
        """

    @abstractmethod
    def logs(self, ref: Ref, *, tail: int) -> Sequence[str]:
        """The last `tail` lines that the instance wrote, oldest first; empty when it wrote none or is absent.

        Before: nothing is required; one that has ended still has its lines. After: nothing has changed, however often it is
        asked. Raises BackendUnavailable, BackendError.
        """
