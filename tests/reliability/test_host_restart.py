"""Engines that ended with their host, or while none of our processes was there: restarted as that, and not as failures."""

import os
import signal

import pytest

from audit.models import AuditRow
from engines import hosts
from engines.models import Engine, Operation
from tests import waiting
from tests.conftest import make_product
from tests.engines.backends.runtimes import processes_of
from tests.reliability import fleet
from tests.reliability.runtimes import restart_daemon
from tests.stack import WORKERS

PROCESSES = ("web", *WORKERS, "health", "keeper", "beat")
ENVIRONMENT = {"ORCH_HEALTH_CHECK_INTERVAL_S": "1", "ORCH_HEALTH_MAX_FAILURES": "1"}  # one bad probe would be a failure


@pytest.fixture
def engines(stack, db) -> list[Engine]:
    """Three running engines, each probed once; the last was stopped. The runtime's identity is in the registry."""
    product = make_product()
    for user in ("alice", "bob", "carol"):
        assert stack.call("POST", "/engines/provision", product.key, {"user_id": user}).status_code == 200
    assert stack.call("POST", "/engines/carol/stop", product.key).status_code == 200
    waiting.until(lambda: Engine.objects.filter(last_health_ok=True).count() == 2, 30, "both are probed")
    waiting.until(hosts.was_seen, 30, "a process has noted which runtime it is")  # else a new one could not be told from it
    return list(Engine.objects.order_by("user_id"))


def kill(runtime, engine) -> None:
    """As a crash would, with nobody told."""
    if runtime.name == "docker":
        found = runtime.client.containers.list(filters={"label": f"roundhouse.engine={engine.pk}"})
        for container in found:
            container.kill()
    else:
        for pid in processes_of(engine.pk):
            os.kill(pid, signal.SIGKILL)


def check_resumed(engines, runtime, cause) -> None:
    """One `restart` of each engine that should run, with its cause, and no failure of any."""
    waiting.until(lambda: AuditRow.objects.filter(action="restart").count() == 2, 60, "both are restarted")
    since = waiting.now()
    waiting.until(lambda: waiting.passed(since, 3), 5)  # probes, and a second restart if there is one to come
    waiting.until(lambda: not Operation.objects.filter(finished_at=None).exists(), 30)
    rows = AuditRow.objects.filter(action="restart").order_by("user_id")
    told = [(row.engine_id, row.actor, row.from_status, row.metadata["cause"]) for row in rows]
    assert told == [(engine.pk, "system", "running", cause) for engine in engines[:2]]
    assert not AuditRow.objects.filter(action__in=["health_failed", "auto_restart_start", "restart_failed"]).exists()
    fleet.check_agrees([engine.pk for engine in engines], runtime)


def test_engines_that_died_while_nothing_ran_are_resumed_by_the_processes_start(stack, runtime, engines):
    for name in PROCESSES:
        stack.stop(name)
    for engine in engines[:2]:
        kill(runtime, engine)
    waiting.until(lambda: runtime.running() == [], 30, "those that were killed are gone")
    stack.start(*PROCESSES, "health.2")
    try:
        check_resumed(engines, runtime, "reconciled")
    finally:
        stack.stop("health.2")


@pytest.mark.daemon
@pytest.mark.parametrize("runtime", ["docker"], indirect=True)
def test_engines_are_resumed_once_when_the_daemon_was_started_again(stack, runtime, engines):
    restart_daemon()
    check_resumed(engines, runtime, "host_restarted")
