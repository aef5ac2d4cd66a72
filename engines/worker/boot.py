"""Boots an instance: creates and starts the instance, and waits until it is healthy."""

import time
from collections.abc import Mapping
from typing import Any

import structlog
from django.db import connection, transaction

from common.settings import settings
from engines import health, hosts, operations
from engines.backends.base import InstanceMissing, Limits, PortTaken, Ref, Spec, State
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
CHECK_S = 0.25  # between two checks of the instance and the lease, which cost more than an unanswered probe


def bring_up(attempt: Attempt, ref: Ref, key_hash: str) -> Booted:
    """Create and start the instance, and wait until it is healthy. Raises Failed, BackendError, LeaseLost."""
    deadline = time.monotonic() + settings.ENV.boot_timeout_s
    digest = _start_on_free_port(attempt, ref, key_hash)
    attempt.step("waiting_for_health")
    _wait_healthy(attempt, ref, deadline)
    return Booted(attempt.engine.engine_version, digest, _port(attempt.engine), ref.incarnation)


def _start_on_free_port(attempt: Attempt, ref: Ref, key_hash: str) -> str:
    """Create and start the instance, on a new port when the engine's port is taken. Returns the digest of its image."""
    # An incarnation keeps its image, by digest, while the host has the image.
    digest = attempt.engine.image_digest if ref == attempt.ref else ""
    for _ in range(MAX_PORTS):
        attempt.step("creating")
        digest = attempt.backend.create(_spec(attempt, ref, key_hash, digest), on_evicted=attempt.evicted.append)
        if ref == attempt.ref:
            attempt.made_of = digest
        attempt.step("starting")
        try:
            attempt.backend.start(ref, on_evicted=attempt.evicted.append)
            return digest
        except PortTaken:
            log.info("port_taken", port=attempt.engine.port)
            _change_port(attempt)
    raise Failed("port_taken", f"{MAX_PORTS} ports in a row were taken; choose a free range (ORCH_PORT_MIN, ORCH_PORT_MAX).")


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
    env = {**settings.ENGINE_ENV, **own, "ENGINE_KEY_HASH": key_hash}
    policy = overrides.in_force(engine.product)
    # the memory counted by the host
    limits = Limits(memory_mb or None, policy.get("cpus"), policy.get("pids"), policy.get("disk_mb"))
    egress = rules.choose_egress(policy, settings.ENV.engine_internet)
    return Spec(ref, engine.product.slug, engine.engine_version, _port(engine), env, limits, digest, _runtime(policy), egress)


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


def _wait_healthy(attempt: Attempt, ref: Ref, deadline: float) -> None:
    """Wait until the instance is healthy. Raises Failed when it ends, or, after stopping the instance, at the deadline."""
    connection.close()  # not held during the wait
    with health.Prober(attempt.engine) as prober:
        if _gets_healthy(attempt, ref, prober, deadline):
            return
    attempt.step("stopping")
    attempt.backend.stop(ref, grace_s=min(settings.ENV.stop_grace_s, 5.0))
    raise Failed("boot_timeout", f"The engine was not healthy within {settings.ENV.boot_timeout_s:g} s.")


def _gets_healthy(attempt: Attempt, ref: Ref, prober: health.Prober, deadline: float) -> bool:
    began = checked = time.monotonic()
    while (now := time.monotonic()) < deadline:
        # The instance is checked after the probe, because a foreign process may have answered on the port. A short boot does not
        # check its lease, because `lifecycle.settle` does.
        if prober.probe().ok and _runs(attempt, ref):
            return True
        if now - checked > CHECK_S:
            checked = now
            operations.check(attempt.lease)
            connection.close()
            _runs(attempt, ref)
        time.sleep(_pause_s(now - began))
    return False


def _pause_s(since_s: float) -> float:
    """Seconds until the next probe of a boot that has lasted `since_s`; fewer operations in hand mean shorter pauses."""
    pause_s = next(pause for until, pause in PAUSES if since_s < until)
    return max(pause_s, min(PAUSES[0][1] * renewal.count(), PAUSE_OF_MANY))


def _runs(attempt: Attempt, ref: Ref) -> bool:
    """Whether a booting instance runs, by the runtime. Raises Failed once the instance has ended, InstanceMissing."""
    state = attempt.backend.observe(ref)
    if state == State.ABSENT:
        raise InstanceMissing("the instance was removed during its boot")
    if state == State.EXITED:
        raise Failed("engine_exited", "The engine ended during its boot; its log says why.")
    return state == State.RUNNING
