"""The contract between the fleet and whatever runs engines.

A backend runs *instances*. An instance is one incarnation of an engine: a process or container made from one spec, on the
engine's volume, which outlives it. Instances carry the engine's id and incarnation as labels, and the backend finds them by
those alone: it keeps no state of its own that a crash could lose.

Every verb may be repeated, at any time, by any number of workers, also after a crash in its middle: a repeat that finds the
work done returns quietly. No verb touches the registry. Every verb ends within `timeout_s` (plus the grace of a stop) or raises
`BackendUnavailable`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from uuid import UUID


class BackendError(Exception):
    """A verb failed; `retryable` tells whether the same call may work later."""

    code = "backend_error"
    retryable = False


class BackendUnavailable(BackendError):
    """The runtime did not answer: nothing is known about its instances."""

    code = "backend_unavailable"
    retryable = True


class ImageMissing(BackendError):
    """The engine's version names nothing this backend can run."""

    code = "image_missing"


class PortTaken(BackendError):
    """Another process has the instance's port; the caller picks the next one and calls again."""

    code = "port_taken"


class InstanceMissing(BackendError):
    """`start` of an instance that was never created, or has been destroyed."""

    code = "instance_missing"


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
class Spec:
    """All that a backend needs to make an instance."""

    ref: Ref
    product: str  # slug, a label
    image: str
    port: int  # on the host; the engine listens on it, or it is published to the container's 8000
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Instance:
    """An instance as `list` found it."""

    ref: Ref
    state: State
    port: int | None = None


class Backend(ABC):
    """Where engines run. See the module's docstring for what holds for every verb."""

    name: str

    @abstractmethod
    def create(self, spec: Spec) -> None:
        """Make the instance, and the engine's volume when it has none, without starting it.

        Before: nothing is required. After: `observe` says CREATED, or what it said before if the instance was there already
        (an instance with these labels is adopted, whatever state it is in; its port follows `spec.port` while it does not
        run). Raises ImageMissing, BackendUnavailable, BackendError.
        """

    @abstractmethod
    def start(self, ref: Ref) -> None:
        """Start the instance; healthy is another question, asked over HTTP.

        Before: it exists, else InstanceMissing. After: `observe` says RUNNING, or EXITED if the engine ended by itself at once.
        No two instances of one engine ever run at a time: BackendError while another one does. Raises PortTaken,
        BackendUnavailable. A repeat on a running instance does nothing.
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

        Before: nothing is required. After: `observe` says ABSENT. Other incarnations of the engine are left alone.
        """

    @abstractmethod
    def remove(self, engine_id: UUID) -> None:
        """Destroy every instance of the engine, and its volume with all data in it.

        Before: nothing is required. After: `list` names no instance of the engine and the volume is gone.
        """

    @abstractmethod
    def observe(self, ref: Ref) -> State:
        """The instance's state now. Never raises for a runtime that does not answer: that is UNKNOWN."""

    @abstractmethod
    def list(self) -> Sequence[Instance]:
        """Every instance of this deployment. Raises BackendUnavailable: an empty list means that there are none."""

    @abstractmethod
    def identity(self) -> str:
        """Names this run of the host and its runtime: another text once either has been started again. Raises BackendUnavailable."""

    @abstractmethod
    def logs(self, ref: Ref, *, tail: int) -> Sequence[str]:
        """The last `tail` lines that the instance wrote, oldest first; empty when it wrote none or is absent."""
