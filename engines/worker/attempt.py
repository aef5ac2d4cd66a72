"""One attempt at an operation: what its steps need, and how the attempt can end."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self
from weakref import WeakKeyDictionary

from audit import trail
from audit.actions import Action
from audit.actors import SYSTEM
from engines import lifecycle, operations
from engines.backends.base import Backend, BackendError, BackendUnavailable, Ref, State
from engines.lifecycle import Booted, Left, Outcome
from engines.models import Engine, Operation, Status, Trigger
from engines.operations import Lease

EXHAUSTED = "attempts_exhausted"
_seen: WeakKeyDictionary[Backend, str] = WeakKeyDictionary()


class Failed(Exception):
    """The operation cannot be done: a code and a sentence, for the operation's record and its caller."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.error = (code, message)

    @classmethod
    def by(cls, error: BackendError) -> Self:
        """A backend's error in words: what the error is, what to do, and what the runtime said."""
        meaning = " ".join((type(error).__doc__ or "").split())
        return cls(error.code, f"{meaning} ({error})" if str(error) else meaning)


class Attempt:
    """One attempt at an operation."""

    def __init__(self, lease: Lease, operation: Operation, backend: Backend) -> None:
        self.lease = lease
        self.operation = operation
        self.engine: Engine = operation.engine
        self.backend = backend
        self.ref = Ref(self.engine.pk, self.engine.incarnation)
        self.next_ref = Ref(self.engine.pk, operation.incarnation)
        self.made_of = ""  # digest of the valid incarnation's instance, once this attempt has made or adopted the instance
        self.evicted: list[str] = []  # ids of containers that stood in the engine's name and were removed for the engine
        self._runtime = ""  # identity of the runtime that the attempt began on, or of an earlier runtime

    def step(self, name: str) -> None:
        """Note a step, before every backend verb. Raises LeaseLost."""
        operations.step(self.lease, name)

    # -- the runtime ---------------------------------------------------------------------------------------------------

    @contextmanager
    def on_one_runtime(self) -> Iterator[None]:
        """Inside the block, an engine's failure counts only if the runtime was the same all the time.

        Raises BackendUnavailable instead of the failure when the runtime was away, or was started again in the middle.
        """
        self._runtime = _last_seen(self.backend)
        try:
            yield
        except (Failed, BackendError) as failure:
            if _is_said_of_the_engine(failure):
                self.check_runtime()
            raise

    def check_runtime(self) -> None:
        """Raise BackendUnavailable when the runtime is away, or is not the one that the attempt began on."""
        identity = self.backend.identity()
        if identity != self._runtime:
            _seen[self.backend] = identity
            raise BackendUnavailable("the host's runtime was started again in the middle")

    @contextmanager
    def recording_evictions(self) -> Iterator[None]:
        """However the block ends, each container that stood in the engine's name and was removed gets a row."""
        try:
            yield
        finally:
            for container in self.evicted:
                metadata = {"incarnation": self.operation.incarnation, "reason": "name_taken", "container": container}
                about = lifecycle.subject(self.engine)
                trail.record(Action.ORPHAN_REMOVED, about, by=SYSTEM, metadata=metadata, operation_id=self.operation.pk)

    # -- the end -------------------------------------------------------------------------------------------------------

    def done(self, booted: Booted | None = None) -> Outcome:
        """The outcome of an attempt that did what the operation is for; `booted` is the instance that it brought up."""
        return lifecycle.succeeded(self.operation, self.engine, self.lease.attempt, booted)

    def failed(self, failure: Failed) -> Outcome:
        """The outcome of an attempt that failed for good. What triggered the operation decides whether restarts follow."""
        operation, number, left = self.operation, self.lease.attempt, Left(self._may_run(), self.made_of)
        match operation.trigger:
            case Trigger.HEALTH:
                retry_in_s = lifecycle.next_restart_s(int(operation.params["restart"]))
                return lifecycle.restart_failed(operation, number, failure.error, retry_in_s, left)
            case Trigger.HOST_RESTARTED:
                restarts = self.engine.restart_attempts
                retry_in_s = lifecycle.next_restart_s(restarts)
                return lifecycle.resume_failed(operation, number, failure.error, restarts, retry_in_s, left)
        return lifecycle.failed(operation, number, failure.error, left)

    def failed_but_running(self, failure: Failed) -> Outcome:
        """The outcome of an attempt that failed for good and left the engine running as it was before."""
        left = Left(digest=self.made_of)
        return lifecycle.failed(self.operation, self.lease.attempt, failure.error, left, status=Status.RUNNING)

    def _may_run(self) -> bool:
        """Whether an instance of the engine runs, for all that the runtime says."""
        return any(self.backend.observe(ref) in (State.RUNNING, State.UNKNOWN) for ref in {self.ref, self.next_ref})


def _last_seen(backend: Backend) -> str:
    """The identity of the runtime as this process knows it, asked for once and after each change.

    An identity that is out of date makes a failure look like the runtime's, which costs the operation another attempt.
    """
    if backend not in _seen:
        _seen[backend] = backend.identity()
    return _seen[backend]


def _is_said_of_the_engine(failure: Failed | BackendError) -> bool:
    """Whether the failure speaks of the engine, and not of the runtime or of the attempts before."""
    return failure.error[0] != EXHAUSTED if isinstance(failure, Failed) else not failure.retryable
