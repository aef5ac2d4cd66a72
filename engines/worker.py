"""Carries operations out: the only caller of a backend's verbs, next to `reconcile`.

`run` claims an operation, acts, and settles. Between any two backend calls it notes a step, which fails once the lease is lost; a
worker that lost its lease drops everything and lets `reconcile` look at the engine, since its last call may have come too late.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID
from weakref import WeakKeyDictionary

import structlog
from django.db import connection

from audit import trail
from audit.actions import Action
from audit.actors import SYSTEM
from common import context
from common.settings import settings
from engines import backends, health, hosts, leases, lifecycle, moves, operations, outcomes, reconcile
from engines.backends.base import Backend, BackendError, BackendUnavailable, InstanceMissing, Limits, PortTaken, Ref, Spec, State
from engines.errors import PortExhaustion
from engines.models import Engine, Kind, Operation, Status
from engines.operations import Lease, LeaseLost
from engines.outcomes import Left, Outcome
from policy import environments, overrides
from policy.errors import EngineEnvUnreadable

log = structlog.get_logger(__name__)

MAX_PORTS = 20  # tries of another port before a boot fails
PAUSES = ((0.4, 0.005), (3.0, 0.04), (float("inf"), 0.3))  # until so many s of a boot: s between two probes of it
PAUSE_OF_MANY = 0.04  # at most, where the first pause is multiplied by what this process has in hand: probes cost processor time
LOOK_S = 0.25  # between two looks at its instance and its lease, which cost more than a probe that nobody answers
EXHAUSTED = "attempts_exhausted"
RETRY_MAX_S = 10.0  # cap of the pause before the next attempt at a backend that did not answer


class Failed(Exception):
    """The operation cannot be done: a code and a sentence, for its record and its caller."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.error = (code, message)


_seen: WeakKeyDictionary[Backend, str] = WeakKeyDictionary()


def _last_seen(backend: Backend) -> str:
    """The identity of the runtime as this process knows it, asked for once and after each change.

    One that is out of date makes a failure look like the runtime's, which costs that operation another attempt.
    """
    if backend not in _seen:
        _seen[backend] = backend.identity()
    return _seen[backend]


class Attempt:
    """One attempt at an operation: what every step of it needs."""

    def __init__(self, lease: Lease, operation: Operation, backend: Backend) -> None:
        self.lease = lease
        self.operation = operation
        self.engine: Engine = operation.engine
        self.backend = backend
        self.ref = Ref(self.engine.pk, self.engine.incarnation)
        self.next_ref = Ref(self.engine.pk, operation.incarnation)

        self.runtime = ""  # identity of the runtime that the attempt began on, or of an earlier one
        self.made_of = ""  # digest of the valid incarnation's instance, once this attempt has made or adopted that

    def check_runtime(self) -> None:
        """Raise BackendUnavailable when the runtime is away, or is not the one that the attempt began on."""
        identity = self.backend.identity()
        if identity != self.runtime:
            _seen[self.backend] = identity
            raise BackendUnavailable("the host's runtime was started again in the middle")

    def may_run(self) -> bool:
        """Whether an instance of the engine runs, for all that the runtime says."""
        return any(self.backend.observe(ref) in (State.RUNNING, State.UNKNOWN) for ref in {self.ref, self.next_ref})

    def step(self, name: str) -> None:
        """Note a step; raises LeaseLost."""
        operations.step(self.lease, name)


def run(operation_id: UUID) -> None:
    """Claim and carry out one operation; returns quietly when there is nothing to claim.

    Whatever an engine or its runtime does ends in a row, or in a later attempt. What is raised is a bug, or PostgreSQL away: the
    lease then lapses, and another attempt is made.
    """
    lease = operations.claim(operation_id)
    if lease is None:
        return
    operation = Operation.objects.select_related("engine__product").get(pk=operation_id)
    attempt = Attempt(lease, operation, backends.get())
    about = structlog.contextvars.bound_contextvars(operation_id=str(operation_id))
    with context.of_request(operation.request_id), about, leases.held(lease):
        try:
            _attempt(attempt)
        except LeaseLost:
            log.warning("lease_lost", attempt=lease.attempt)
            reconcile.engine(operation.engine_id)


def _attempt(attempt: Attempt) -> None:
    """Act and settle. When the backend does not answer the operation is given back, for ORCH_OPERATION_GIVE_UP_S at most."""
    try:
        outcome = _act_and_tell(attempt)
    except BackendError as error:
        if error.retryable and not attempt.lease.is_last:
            log.warning("operation_returned", error=error.code, attempt=attempt.lease.attempt)
            if not operations.release(attempt.lease, delay_s=min(2.0 ** min(attempt.lease.attempt, 5), RETRY_MAX_S)):
                raise LeaseLost(attempt.lease.operation_id) from error
            return
        outcome = _failed(attempt, _told(error))
    except Failed as failure:
        outcome = _failed(attempt, failure.error)
    if not lifecycle.settle(attempt.lease, attempt.operation, outcome):
        raise LeaseLost(attempt.lease.operation_id)
    log.info("operation_ended", kind=attempt.operation.kind, action=outcome.action.value, error=outcome.error[0] or None)


def _told(error: BackendError) -> tuple[str, str]:
    """Code and sentence of a backend's error: what it is, what to do, and what the runtime said."""
    meaning = " ".join((type(error).__doc__ or "").split())
    return error.code, f"{meaning} ({error})" if str(error) else meaning


def _act_and_tell(attempt: Attempt) -> Outcome:
    """Act; however that ends, what stood in the engine's name and was removed for it has a row."""
    attempt.backend.take_evicted()  # left by somebody else on this thread
    try:
        return _act_on_one_runtime(attempt)
    finally:
        for evicted in attempt.backend.take_evicted():
            metadata = {"incarnation": attempt.operation.incarnation, "reason": "name_taken", "container": evicted}
            trail.record(
                Action.ORPHAN_REMOVED,
                moves.subject(attempt.engine),
                by=SYSTEM,
                metadata=metadata,
                operation_id=attempt.operation.pk,
            )


def _act_on_one_runtime(attempt: Attempt) -> Outcome:
    """Act; a failure under a runtime that was away or started again in the meantime is that runtime's, not the engine's."""
    attempt.runtime = _last_seen(attempt.backend)
    try:
        return _act(attempt)
    except Failed as failure:
        if failure.error[0] != EXHAUSTED:
            attempt.check_runtime()
        raise
    except BackendError as error:
        if not error.retryable:
            attempt.check_runtime()
        raise


def _act(attempt: Attempt) -> Outcome:
    if attempt.lease.is_exhausted:
        raise Failed(EXHAUSTED, f"Given up: {settings.ENV.operation_max_attempts} attempts ended in the middle.")
    return ACTS[Kind(attempt.operation.kind)](attempt)


def _failed(attempt: Attempt, error: tuple[str, str]) -> Outcome:
    """The outcome of a failure for good."""
    operation, number = attempt.operation, attempt.lease.attempt
    left = Left(may_run=attempt.may_run(), digest=attempt.made_of)
    if outcomes.is_automatic(operation):
        return outcomes.restart_failed(operation, number, error, health.next_restart_s(int(operation.params["restart"])), left)
    if outcomes.is_resumed(operation):
        restarts = attempt.engine.restart_attempts
        return outcomes.resume_failed(operation, number, error, restarts, health.next_restart_s(restarts), left)
    return outcomes.failed(operation, number, error, left)


# -- what each kind does -----------------------------------------------------------------------------------------------


def _boot(attempt: Attempt) -> Outcome:
    """Provision, start and wake: the instance exists, runs and is healthy."""
    return _done(attempt, _bring_up(attempt, attempt.ref, attempt.engine.key_hash))


def _restart(attempt: Attempt) -> Outcome:
    attempt.step("stopping")
    attempt.backend.stop(attempt.ref, grace_s=settings.ENV.stop_grace_s)
    return _boot(attempt)


def _stop(attempt: Attempt) -> Outcome:
    """Stop and sleep: the instance is there, and does not run."""
    attempt.step("stopping")
    attempt.backend.stop(attempt.ref, grace_s=settings.ENV.stop_grace_s)
    return _done(attempt, {})


def _destroy(attempt: Attempt) -> Outcome:
    """Nothing of the engine is left. Asked to end first, so that a turn in progress can finish within the grace."""
    for incarnation in sorted({attempt.engine.incarnation, attempt.engine.incarnations}):
        attempt.step("stopping")
        attempt.backend.stop(Ref(attempt.engine.pk, incarnation), grace_s=settings.ENV.stop_grace_s)
    attempt.step("removing")
    attempt.backend.remove(attempt.engine.pk)
    return _done(attempt, {})


def _rotate_key(attempt: Attempt) -> Outcome:
    """A new incarnation with the pending key on the same volume; the old one goes last, or comes back when the new one fails."""
    attempt.step("stopping")
    attempt.backend.stop(attempt.ref, grace_s=settings.ENV.stop_grace_s)
    try:
        booted = _bring_up(attempt, attempt.next_ref, attempt.engine.pending_key_hash)
    except (Failed, BackendError) as failure:
        if isinstance(failure, BackendError) and failure.retryable:
            raise
        attempt.check_runtime()
        return _return_to_old_key(attempt, failure)
    attempt.step("removing_old")
    attempt.backend.destroy(attempt.ref)
    return _done(attempt, booted)


def _return_to_old_key(attempt: Attempt, failure: Failed | BackendError) -> Outcome:
    """Put the old incarnation back; the operation has failed either way, the engine only if that does not get healthy."""
    error = failure.error if isinstance(failure, Failed) else _told(failure)
    attempt.step("returning_to_old_key")
    attempt.backend.destroy(attempt.next_ref)
    try:
        _bring_up(attempt, attempt.ref, attempt.engine.key_hash)
    except Failed:
        return _failed(attempt, error)
    left = Left(digest=attempt.made_of)
    return outcomes.failed(attempt.operation, attempt.lease.attempt, error, left, status=Status.RUNNING)


ACTS: Mapping[Kind, Callable[[Attempt], Outcome]] = {
    Kind.PROVISION: _boot,
    Kind.START: _boot,
    Kind.WAKE: _boot,
    Kind.RESTART: _restart,
    Kind.STOP: _stop,
    Kind.SLEEP: _stop,
    Kind.ROTATE_KEY: _rotate_key,
    Kind.DESTROY: _destroy,
}


def _done(attempt: Attempt, metadata: Mapping[str, Any]) -> Outcome:
    return outcomes.succeeded(attempt.operation, attempt.engine, {"attempt": attempt.lease.attempt, **metadata})


# -- booting -----------------------------------------------------------------------------------------------------------


def _bring_up(attempt: Attempt, ref: Ref, key_hash: str) -> dict[str, Any]:
    """Make and start the instance, wait until it is healthy; returns what its row says. Raises Failed, BackendError."""
    deadline = time.monotonic() + settings.ENV.boot_timeout_s
    digest = _start_on_free_port(attempt, ref, key_hash)
    attempt.step("waiting_for_health")
    _wait_healthy(attempt, ref, deadline)
    engine = attempt.engine
    return {"image": engine.engine_version, "digest": digest, "port": engine.port, "incarnation": ref.incarnation}


def _start_on_free_port(attempt: Attempt, ref: Ref, key_hash: str) -> str:
    """Create and start; a port that something else has taken is exchanged for the next one. Returns the digest it is made of."""
    engine = attempt.engine
    # An incarnation is made of one image, as long as the host has that.
    digest = engine.image_digest if ref == attempt.ref else ""
    for _ in range(MAX_PORTS):
        attempt.step("creating")
        digest = attempt.backend.create(_spec(attempt, ref, key_hash, digest))
        if ref == attempt.ref:
            attempt.made_of = digest
        attempt.step("starting")
        try:
            attempt.backend.start(ref)
            return digest
        except PortTaken:
            log.info("port_taken", port=engine.port)
            engine.port = _next_port(attempt)
    raise Failed("port_taken", f"{MAX_PORTS} ports in a row were taken; choose others (ORCH_PORT_MIN, ORCH_PORT_MAX).")


def _next_port(attempt: Attempt) -> int:
    try:
        return hosts.change_port(attempt.lease, attempt.engine)
    except PortExhaustion as none_left:
        raise Failed("port_exhaustion", str(none_left)) from none_left


def _spec(attempt: Attempt, ref: Ref, key_hash: str, digest: str) -> Spec:
    engine = attempt.engine
    assert engine.port is not None  # every living engine has one
    is_next = ref == attempt.next_ref
    version = outcomes.env_version(attempt.operation, engine) if is_next else engine.env_version
    memory = outcomes.memory_mb(attempt.operation, engine) if is_next else engine.memory_mb  # what its host counts for it
    try:
        own = environments.read(engine.product_id, version)
    except EngineEnvUnreadable as error:
        raise Failed("engine_env_unreadable", str(error)) from error
    env = {**settings.ENGINE_ENV, **own, "ENGINE_KEY_HASH": key_hash}
    policy = overrides.in_force(engine.product)
    limits = Limits(memory or None, policy.get("cpus"), policy.get("pids"))
    return Spec(ref, engine.product.slug, engine.engine_version, engine.port, env, limits, digest)


def _wait_healthy(attempt: Attempt, ref: Ref, deadline: float) -> None:
    """Until the instance answers its health check. Raises Failed when it ends, or, stopped by us, when the time is over."""
    connection.close()  # not held while we wait
    with health.Prober(attempt.engine) as prober:
        if _gets_healthy(attempt, ref, prober, deadline):
            return
    attempt.step("stopping")
    attempt.backend.stop(ref, grace_s=min(settings.ENV.stop_grace_s, 5.0))
    raise Failed("boot_timeout", f"The engine was not healthy within {settings.ENV.boot_timeout_s:g} s.")


def _gets_healthy(attempt: Attempt, ref: Ref, prober: health.Prober, deadline: float) -> bool:
    began = looked = time.monotonic()
    while (now := time.monotonic()) < deadline:
        # It is looked at after the probe: something else may have answered on the port. Whether we still hold the lease is asked
        # of a boot that lasts; the settlement asks it anyway.
        if prober.probe().ok and _runs(attempt, ref):
            return True
        if now - looked > LOOK_S:
            looked = now
            operations.check(attempt.lease)
            connection.close()
            _runs(attempt, ref)
        time.sleep(_pause_s(now - began))
    return False


def _pause_s(since_s: float) -> float:
    """Until the next probe of a boot that has lasted so long: the fewer there are at once, the closer we look."""
    pause_s = next(pause for until, pause in PAUSES if since_s < until)
    return max(pause_s, min(PAUSES[0][1] * leases.count(), PAUSE_OF_MANY))


def _runs(attempt: Attempt, ref: Ref) -> bool:
    """Whether a booting instance runs, as far as the runtime says. Raises Failed, InstanceMissing when it does not any more."""
    state = attempt.backend.observe(ref)
    if state == State.ABSENT:
        raise InstanceMissing("somebody removed the instance while it was booting")
    if state == State.EXITED:
        raise Failed("engine_exited", "The engine ended while it was booting; its log says why.")
    return state == State.RUNNING
