"""Boots an instance: creates and starts the instance, and waits until it is healthy."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import structlog
from django.db import connection, transaction

from common.settings import settings
from engines import health, hosts, operations, specs
from engines.backends.base import (
    BackendError,
    InstanceDiffers,
    InstanceMissing,
    Made,
    OtherRuns,
    PortTaken,
    Ref,
    RuntimeMissing,
    Spec,
    State,
)
from engines.errors import PortExhaustion
from engines.lifecycle import Booted
from engines.models import Engine
from engines.worker import renewal
from engines.worker.attempt import Attempt, Failed
from policy import environments, overrides, rules
from policy.errors import EngineEnvUnreadable

log = structlog.get_logger(__name__)

MAX_PORTS = 20  # tries of further ports before a boot fails
PAUSES = ((0.4, 0.005), (3.0, 0.04), (float("inf"), 0.3))  # (until s of a boot, s between two probes of the instance)
# Probes cost processor time: the first pause is multiplied by the number of operations in hand, up to PAUSE_OF_MANY seconds.
PAUSE_OF_MANY = 0.04
# (until s of a boot, s between two checks of the instance and the lease, which ask the daemon and the database)
CHECKS = ((3.0, 0.25), (float("inf"), 1.0))


def bring_up(attempt: Attempt, ref: Ref, key_hash: str) -> Booted:
    """Create and start the instance, and wait until it is healthy. Raises Failed, BackendError, LeaseLost.

    An instance that was not healthy in time at its last boot is made anew first: a repeat would end as before.
    """
    if ref == attempt.ref and attempt.engine.boot_timed_out:
        attempt.discard(ref, "boot_timeout")
    deadline = time.monotonic() + settings.ENV.boot_timeout_s
    digest = _start_on_free_port(attempt, ref, key_hash)
    attempt.step("waiting_for_health")
    # An incarnation keeps its code as long as it keeps its image, and has proved itself with it.
    must_prove = attempt.engine.proves and (ref, digest) == (attempt.ref, attempt.engine.image_digest)
    found = _wait_healthy(attempt, ref, health.Prober(attempt.engine, key_hash, must_prove=must_prove), deadline)
    return Booted(
        attempt.engine.engine_version, digest, _port(attempt.engine), ref.incarnation, found.proven, remade=attempt.remade
    )


def _start_on_free_port(attempt: Attempt, ref: Ref, key_hash: str) -> str:
    """Create and start the instance, on a new port when the engine's port is taken. Returns the digest of its image."""
    # An incarnation keeps its image, by digest, while the host has the image.
    digest = attempt.engine.image_digest if ref == attempt.ref else ""
    for _ in range(MAX_PORTS):
        made = _create(attempt, _spec(attempt, ref, key_hash, digest))
        digest = made.digest
        if ref == attempt.ref:
            attempt.made_of = digest
        attempt.step("starting")
        try:
            attempt.backend.start(ref, on_evicted=attempt.evicted.append)
            return digest
        except PortTaken:
            log.info("port_taken", port=attempt.engine.port)
            _change_port(attempt)
        except BackendError as refused:
            if not _overcome(attempt, ref, made, refused):
                raise
    raise Failed("port_taken", f"{MAX_PORTS} ports in a row were taken; choose a free range (ORCH_PORT_MIN, ORCH_PORT_MAX).")


def _create(attempt: Attempt, spec: Spec) -> Made:
    """Create or adopt the instance; an instance that differs from the spec is made anew. Raises BackendError, LeaseLost."""
    attempt.step("creating")
    try:
        return attempt.backend.create(spec, on_evicted=attempt.evicted.append)
    except InstanceDiffers as differs:
        log.info("instance_differs", engine_id=str(spec.ref.engine_id), said=str(differs))
    attempt.discard(spec.ref, "differs")
    attempt.step("creating")
    return attempt.backend.create(spec, on_evicted=attempt.evicted.append)


def _overcome(attempt: Attempt, ref: Ref, made: Made, refused: BackendError) -> bool:
    """Remove what lets the runtime refuse a start; False if that is not known, or was removed before.

    An instance that the registry does not know may run. An instance that existed before may be broken: a new one may start. Of
    other refusals a new instance cures none, and its making would cost the old instance's log.
    """
    if isinstance(refused, OtherRuns):
        return attempt.retire_others()
    if made.is_new or not (type(refused) is BackendError or isinstance(refused, RuntimeMissing)):
        return False
    attempt.discard(ref, "refused")
    return True


@transaction.atomic
def _change_port(attempt: Attempt) -> None:
    """Give the engine a new port, because a foreign process has taken its port. Raises Failed, LeaseLost."""
    host = hosts.local()
    operations.check(attempt.lease)
    try:
        attempt.engine.port = hosts.pick_port(host)
    except PortExhaustion as none_left:
        raise Failed("port_exhaustion", str(none_left)) from none_left
    Engine.objects.filter(pk=attempt.engine.pk).update(port=attempt.engine.port)


def _spec(attempt: Attempt, ref: Ref, key_hash: str, digest: str) -> Spec:
    """The specification of the instance for the backend. Raises Failed."""
    engine = attempt.engine
    version, memory_mb = engine.env_version, engine.memory_mb
    if ref == attempt.next_ref:
        version, memory_mb = attempt.operation.env_version, attempt.operation.memory_mb
    try:
        own = environments.read(engine.product_id, version)
    except EngineEnvUnreadable as error:
        raise Failed("engine_env_unreadable", str(error)) from error
    spec = specs.of_incarnation(engine, ref, key_hash, own, memory_mb)
    policy = overrides.in_force(engine.product)
    limits = replace(spec.limits, cpus=policy.get("cpus"), pids=policy.get("pids"), disk_mb=policy.get("disk_mb"))
    egress = rules.choose_egress(policy, settings.ENV.engine_internet)
    return replace(spec, limits=limits, digest=digest, runtime=_runtime(policy), egress=egress)


def _runtime(policy: Mapping[str, Any]) -> str:
    """The policy's container runtime, or empty without a rule. Raises Failed once the settings do not allow that runtime."""
    runtime = str(policy.get("runtime", ""))
    allowed = settings.ENV.runtimes
    if runtime and runtime not in allowed:
        raise Failed(
            "runtime_not_allowed",
            f"The product's policy asks for the container runtime {runtime}, and ORCH_ENGINE_RUNTIMES allows only"
            f" {', '.join(allowed)}. Allow {runtime}, or choose another container runtime in the policy.",
        )
    return runtime


def _port(engine: Engine) -> int:
    assert engine.port is not None  # every living engine has a port
    return engine.port


def _wait_healthy(attempt: Attempt, ref: Ref, prober: health.Prober, deadline: float) -> health.Result:
    """Wait until the instance is healthy; returns the result of the probe that showed it.

    Raises Failed when the instance ends, or, after stopping the instance, at the deadline.
    """
    connection.close()  # not held during the wait
    with prober:
        result = _probe_until_healthy(attempt, ref, prober, deadline)
    if result.ok:
        return result
    attempt.step("stopping")
    attempt.backend.stop(ref, grace_s=min(settings.ENV.stop_grace_s, 5.0))
    attempt.timed_out = ref == attempt.ref
    waited_s = settings.ENV.boot_timeout_s
    raise Failed("boot_timeout", f"The engine was not healthy within {waited_s:g} s. The last probe's result is {result.text}.")


def _probe_until_healthy(attempt: Attempt, ref: Ref, prober: health.Prober, deadline: float) -> health.Result:
    """Probe until a good answer is the instance's own, or until the deadline; returns the last result."""
    began = checked = time.monotonic()
    result = health.Result(False, "timeout")
    while (now := time.monotonic()) < deadline:
        # The instance is checked after the probe, because a foreign process may have answered on the port. A short boot does not
        # check its lease, because `lifecycle.settle` does.
        result = prober.probe()
        if result.ok and not (_runs(attempt, ref) and (result.proven or _has_port(attempt, ref))):
            result = health.Result(False, "instance_elsewhere")
        if result.ok:
            return result
        if now - checked > _at(CHECKS, now - began):
            checked = now
            operations.check(attempt.lease)
            connection.close()
            _runs(attempt, ref)
        time.sleep(_pause_s(now - began))
    return result


def _pause_s(since_s: float) -> float:
    """Seconds until the next probe of a boot that has lasted `since_s`; fewer operations in hand mean shorter pauses."""
    return max(_at(PAUSES, since_s), min(PAUSES[0][1] * renewal.count(), PAUSE_OF_MANY))


def _at(pauses: Sequence[tuple[float, float]], since_s: float) -> float:
    return next(pause for until, pause in pauses if since_s < until)


def _runs(attempt: Attempt, ref: Ref) -> bool:
    """Whether a booting instance runs, by the runtime. Raises Failed once the instance has ended, InstanceMissing."""
    state = attempt.backend.observe(ref)
    if state == State.ABSENT:
        raise InstanceMissing("the instance was removed during its boot")
    if state == State.EXITED:
        raise Failed("engine_exited", "The engine ended during its boot; its log says why.")
    return state == State.RUNNING


def _has_port(attempt: Attempt, ref: Ref) -> bool:
    """Whether the runtime shows that nobody but the instance can answer on the engine's port."""
    return any(found.serves(ref, _port(attempt.engine)) for found in attempt.backend.list(ref.engine_id))
