"""Valkey and PostgreSQL that stop answering: no process ends, no work in hand starts over, and each outage is one line."""

import json
from collections import Counter

import pytest
from django.db import connections
from django.db.models.functions import Now

from common import valkey
from config.local import embedded
from engines import backends
from engines.backends.memory.behaviour import Behaviour
from engines.models import Operation
from engines.worker import renewal
from fleet.jobs.models import Job
from tests import servers, waiting
from tests.conftest import make_product, running_stack
from tests.freezing import frozen_valkey

FREEZES, FROZEN_S = 6, 2.2
LEASE_S, RESEND_S = 1.0, 0.8
BOOT_S = 8.0
ENVIRONMENT = {
    "ORCH_ENGINE_BACKEND": "memory",
    "ORCH_LOG_LEVEL": "INFO",
    "ORCH_LEASE_S": str(LEASE_S),
    "ORCH_LEASE_RENEW_S": "0.2",
    "ORCH_RESEND_AFTER_S": str(RESEND_S),
}


@pytest.fixture(scope="module")
def stack(database):
    with running_stack(edition="small", **ENVIRONMENT) as processes:
        for name in ("worker", "keeper"):
            waiting.until(lambda name=name: "worker_ready" in processes.log(name), 60, f"{name} takes messages")
        yield processes


@pytest.fixture
def product(stack, db):
    Job.objects.update(added_at=Now(), done_at=None)  # no test before has left a job late
    Job.objects.filter(name="reconcile").update(sent_at=None, started_at=None)  # due at once
    waiting.until(lambda: has_told(stack, "worker"), 20, "the worker has told the return from an outage of the test before")
    # A sweep may have met engines of the test before that were no longer registered, and says so.
    waiting.until(lambda: Job.objects.get(name="reconcile").done_at, 20, "a sweep has ended since the test before")
    return make_product()


def has_told(stack, name):
    """Whether the process has told the return from each outage that it has told."""
    events = count_warnings(stack.log(name))
    return events["dependency_away"] == events["dependency_back"]


@pytest.mark.timeout(180)
def test_no_process_ends_and_each_outage_is_told_once(stack, product):
    assert max(renewal.STALLED_LEASES * LEASE_S, 2 * RESEND_S) < FROZEN_S  # long enough to count as stalled
    before = {name: stack.pid(name) for name in stack.names}
    backends.get().behave(None, Behaviour(boot_s=BOOT_S))
    request_boot(stack, product, "alice")
    waiting.until(lambda: Operation.objects.filter(state="running").exists(), 30, "a boot is under way")
    backends.get().behave(None, Behaviour())
    logs = {name: len(stack.log(name)) for name in stack.names}
    for number in range(FREEZES):
        with frozen_valkey():
            since = waiting.now()
            request_boot(stack, product, f"user-{number}")
            waiting.until(lambda since=since: waiting.passed(since, FROZEN_S), FROZEN_S + 2)
    waiting.until(lambda: Operation.objects.filter(state="succeeded").count() == FREEZES + 1, 60, "all are done")
    assert {name: stack.pid(name) for name in stack.names} == before
    told = {name: count_warnings(stack.log(name)[begin:]) for name, begin in logs.items()}
    for name, events in told.items():
        assert events.keys() <= {"dependency_away", "dependency_back", "lease_lost"}, name
        assert 0 <= events["dependency_away"] - events["dependency_back"] <= 1, name
        assert events["dependency_away"] <= FREEZES, name
    # The boot under way did not start over. A slow machine may lose a lease of a second.
    assert Operation.objects.get(engine__user_id="alice").attempt <= 1 + told["worker"]["lease_lost"]


@pytest.mark.parametrize("server", ["valkey", "postgres"])
def test_server_that_was_stopped_and_started_is_told_once(stack, product, server):
    before = {name: stack.pid(name) for name in stack.names}
    logs = {name: len(stack.log(name)) for name in stack.names}
    stopped = embedded.Servers(servers.HOME, (server,))
    stopped.stop()
    since = waiting.now()
    waiting.until(lambda: waiting.passed(since, 2.5), 5)
    stopped.start()
    connections.close_all()
    valkey.client().ping()  # this process connects again
    request_boot(stack, product, "alice")
    waiting.until(lambda: Operation.objects.filter(state="succeeded").exists(), 30, "an engine boots")
    waiting.until(lambda: "dependency_back" in stack.log("worker")[logs["worker"] :], 10, "the worker has told the return")
    assert {name: stack.pid(name) for name in stack.names} == before
    told = {name: count_warnings(stack.log(name)[begin:]) for name, begin in logs.items()}
    assert told["worker"]["dependency_away"] == told["worker"]["dependency_back"] == 1
    for name, events in told.items():
        assert events.keys() <= {"dependency_away", "dependency_back", "lease_lost"}, name


def request_boot(stack, product, user_id):
    answer = stack.call("POST", "/engines/provision", product.key, {"user_id": user_id}, Prefer="respond-async")
    assert answer.status_code == 202, answer.text


def count_warnings(text):
    """How many lines at the levels `warning` and `error` a process has written, by event."""
    assert "Traceback" not in text
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return Counter(line["event"] for line in lines if line["level"] in ("warning", "error"))
