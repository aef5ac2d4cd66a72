"""An attempt at an operation: the data and checks for its steps, and its possible outcomes."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self
from weakref import WeakKeyDictionary

from audit import trail
from audit.actions import Action
from audit.actors import SYSTEM
from common.settings import settings
from engines import lifecycle, operations, specs
from engines.backends.base import Backend, BackendError, BackendUnavailable, Ref, State
from engines.lifecycle import Booted, Left, Outcome
from engines.models import Engine, Kind, Operation, Status, Trigger
from engines.operations import Lease

EXHAUSTED = "attempts_exhausted"
REMAKING = "remaking_"  # begins the name of a step; the reason follows
_seen: WeakKeyDictionary[Backend, str] = WeakKeyDictionary()


class Failed(Exception):
    """The operation failed for good: a code, and a sentence for operators. A product gets the code's own (`engines.causes`)."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.error = (code, message)

    @classmethod
    def by(cls, error: BackendError) -> Self:
        """The failure for a backend's error, in words for operators: cause and remedy, and the runtime's message."""
        return cls(error.code, f"{error.advice} ({error})" if str(error) else error.advice)


class Attempt:
    """A worker's attempt at an operation, under a lease."""

    def __init__(self, lease: Lease, operation: Operation, backend: Backend) -> None:
        self.lease = lease
        self.operation = operation
        self.engine: Engine = operation.engine
        self.backend = backend
        self.ref = specs.ref_of(self.engine)
        self.next_ref = Ref.parse(self.engine.pk, operation.mark)
        self.remade = _remade_by(operation)  # why the operation has made an instance anew, or empty
        self.timed_out = False  # the valid instance was not healthy in time
        self.made_of = ""  # digest of the valid incarnation's image, once the attempt has made or adopted the instance
        self.evicted: list[str] = []  # ids of foreign containers that had the name of the engine's instance and were removed
        self._runtime = ""  # identity of the runtime at the start of the attempt, or of an earlier runtime

    def step(self, name: str) -> None:
        """Note a step, before every backend verb. Raises LeaseLost."""
        operations.step(self.lease, name)

    def note(self, params: Mapping[str, Any]) -> None:
        """Add to the operation's parameters, for its page and its audit rows."""
        self.operation.params = {**self.operation.params, **params}
        self.operation.save(update_fields=["params"])

    def discard(self, ref: Ref, reason: str) -> None:
        """End and remove an instance that is of no use: the next `create` makes the instance anew, on the same volume.

        The step keeps `reason` for the audit row, also if this attempt dies. Raises LeaseLost, BackendError.
        """
        self.step(f"{REMAKING}{reason}")
        self.remade = reason
        self.backend.stop(ref, grace_s=settings.ENV.stop_grace_s)
        self.step("removing")
        self.backend.destroy(ref)

    def retire_others(self) -> bool:
        """End and remove every instance of the engine that the registry does not know; whether there was one.

        A registry that was restored from a backup is older than the instances. Raises LeaseLost, BackendError.
        """
        self.step("retiring_others")
        known = {self.ref, self.next_ref}
        found = self.backend.retire(self.engine.pk, but=known, grace_s=settings.ENV.stop_grace_s)
        for ref in found:
            self._record_removed({"incarnation": ref.incarnation, "reason": "old_incarnation"})
        return bool(found)

    # -- the runtime ---------------------------------------------------------------------------------------------------

    @contextmanager
    def on_one_runtime(self) -> Iterator[None]:
        """Inside the block, a failure of the engine counts only if the runtime ran all the time.

        Raises BackendUnavailable in place of the failure when the runtime was away, or was started again in the middle.
        """
        self._runtime = _last_seen(self.backend)
        try:
            yield
        except (Failed, BackendError) as failure:
            if _is_said_of_the_engine(failure):
                self.check_runtime()
            raise

    def check_runtime(self) -> None:
        """Raise BackendUnavailable when the runtime is away, or was started again since the attempt began."""
        identity = self.backend.identity()
        if identity != self._runtime:
            _seen[self.backend] = identity
            raise BackendUnavailable("the host's runtime was started again in the middle")

    @contextmanager
    def recording_evictions(self) -> Iterator[None]:
        """At the end of the block, also after an exception, write an audit row per container in `evicted`."""
        try:
            yield
        finally:
            for container in self.evicted:
                incarnation = self.operation.incarnation
                self._record_removed({"incarnation": incarnation, "reason": "name_taken", "container": container})

    def _record_removed(self, metadata: Mapping[str, Any]) -> None:
        about = lifecycle.subject(self.engine)
        trail.record(Action.ORPHAN_REMOVED, about, by=SYSTEM, metadata=metadata, operation_id=self.operation.pk)

    # -- the end -------------------------------------------------------------------------------------------------------

    def done(self, booted: Booted | None = None) -> Outcome:
        """The outcome of a successful attempt; `booted` is the instance brought up, if any."""
        return lifecycle.succeeded(self.operation, self.engine, self.lease.attempt, booted)

    def failed(self, failure: Failed) -> Outcome:
        """The outcome of an attempt that failed for good. The operation's trigger decides whether restarts follow."""
        operation, number, left = self.operation, self.lease.attempt, self._left()
        match operation.trigger:
            case Trigger.HEALTH:
                retry_in_s = lifecycle.next_restart_s(int(operation.params["restart"]))
                return lifecycle.restart_failed(operation, number, failure.error, retry_in_s, left)
            case Trigger.HOST_RESTARTED | Trigger.RECONCILED if operation.kind == Kind.RESTART:
                restarts = self.engine.restart_attempts
                retry_in_s = lifecycle.next_restart_s(restarts)
                return lifecycle.resume_failed(operation, number, failure.error, restarts, retry_in_s, left)
        return lifecycle.failed(operation, number, failure.error, left)

    def failed_but_running(self, failure: Failed) -> Outcome:
        """The outcome of an attempt that failed for good and left the engine running as before."""
        left = Left(digest=self.made_of, remade=self.remade)
        return lifecycle.failed(self.operation, self.lease.attempt, failure.error, left, status=Status.RUNNING)

    def _left(self) -> Left:
        return Left(self._may_run(), self.made_of, self.timed_out, self.remade)

    def _may_run(self) -> bool:
        """Whether an instance of the engine runs, or the runtime does not know whether it runs."""
        return any(self.backend.observe(ref) in (State.RUNNING, State.UNKNOWN) for ref in {self.ref, self.next_ref})


def _remade_by(operation: Operation) -> str:
    """Why an earlier attempt at the operation began to make an instance anew, or empty."""
    names = [step["step"] for step in operation.steps]
    return next((name.removeprefix(REMAKING) for name in reversed(names) if name.startswith(REMAKING)), "")


def _last_seen(backend: Backend) -> str:
    """The identity of the runtime as known to the process: read once, and again after every change.

    With an outdated identity, a failure of the engine counts as a failure of the runtime, and costs the operation a further
    attempt.
    """
    if backend not in _seen:
        _seen[backend] = backend.identity()
    return _seen[backend]


def _is_said_of_the_engine(failure: Failed | BackendError) -> bool:
    """Whether the failure concerns the engine, and not the runtime or the number of earlier attempts."""
    return failure.error[0] != EXHAUSTED if isinstance(failure, Failed) else not failure.retryable
