"""A worker that dies, or freezes past its lease and then goes on, in the middle of a verb: done once, and nothing left over."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial

import pytest
import redis
from django.conf import settings

from audit.models import AuditRow
from common import valkey
from engines.lifecycle import find
from engines.models import Engine, Kind, Operation
from engines.worker import renewal
from tests import waiting
from tests.conftest import make_product, running_stack
from tests.reliability import fleet, matrix
from tests.stack import WORKERS, Stack

BOOT_S = 2.0
LEASE_S = 3
STALLED_S = renewal.STALLED_LEASES * LEASE_S
ENVIRONMENT = {
    "ORCH_LEASE_S": str(LEASE_S),
    "ORCH_LEASE_RENEW_S": "1",
    "ORCH_RESEND_AFTER_S": "2",
    "ORCH_STOP_GRACE_S": "10",
    "ORCH_HEALTH_CHECK_INTERVAL_S": "2",
    "ORCH_ENGINE_ENV_PASSTHROUGH": "DEMO_FAULTS,DEMO_BOOT_DELAY_S",
    "DEMO_FAULTS": "1",
    "DEMO_BOOT_DELAY_S": str(BOOT_S),
}
VERBS = {  # kind: (method, path, the step to be in the middle of)
    Kind.PROVISION: ("POST", "/engines/provision", "waiting_for_health"),
    Kind.STOP: ("POST", "/engines/alice/stop", "stopping"),
    Kind.ROTATE_KEY: ("POST", "/engines/alice/rotate-key", "waiting_for_health"),
    Kind.DESTROY: ("DELETE", "/engines/alice", "stopping"),
}


@pytest.fixture(scope="module")
def stack(database) -> Iterator[Stack]:
    with running_stack(**ENVIRONMENT) as processes:
        yield processes


@pytest.fixture
def product(stack, db):
    return make_product()


@pytest.fixture
def second_worker(stack):
    """Starts another `ops` process when called, and ends it after the test."""
    yield lambda: stack.start("ops.2")
    stack.stop("ops.2")


def begin(stack, product, pool, kind):
    """Send the verb's request, and return it under way together with its engine, once a worker is in the middle of it."""
    method, path, step = VERBS[kind]
    if kind != Kind.PROVISION:
        assert stack.call("POST", "/engines/provision", product.key, {"user_id": "alice"}).status_code == 200
    if kind in (Kind.STOP, Kind.DESTROY):
        matrix.order_fault(*matrix.reach(find(product, "alice")), mode="busy", seconds=4)
    body = {"user_id": "alice"} if kind == Kind.PROVISION else None
    request = pool.submit(partial(stack.call, method, path, product.key, body))
    waiting.until(lambda: at_step(kind, step), 20, f"{kind} is at {step}")
    return request, Engine.objects.get(product=product)


def at_step(kind, step):
    operation = Operation.objects.filter(kind=kind).first()
    return operation is not None and any(done["step"] == step for done in operation.steps)


@pytest.mark.parametrize("kind", VERBS)
def test_kill_of_the_worker_is_survived(stack, product, kind):
    with ThreadPoolExecutor() as pool:
        request, engine = begin(stack, product, pool, kind)
        stack.kill("ops")
        assert request.result().status_code == 200, request.result().text
    waiting.until(lambda: fleet.operation_ended(engine.pk, kind), 60)
    fleet.check_settled(engine.pk, kind)
    assert Operation.objects.get(engine=engine, kind=kind).attempt > 1


@pytest.mark.parametrize("kind", VERBS)
def test_frozen_worker_undoes_nothing_when_it_goes_on(stack, second_worker, product, kind):
    with ThreadPoolExecutor() as pool:
        request, engine = begin(stack, product, pool, kind)
        frozen = stack.freeze("ops")
        second_worker()
        assert request.result().status_code == 200, request.result().text
    waiting.until(lambda: fleet.operation_ended(engine.pk, kind), 60)
    before = AuditRow.objects.filter(engine_id=engine.pk).exclude(action="health_check").count()
    lost = stack.log("ops").count("lease_lost")
    stack.thaw(frozen)
    waiting.until(lambda: stack.log("ops").count("lease_lost") > lost, 30, "the frozen worker notices that its lease is gone")
    fleet.check_settled(engine.pk, kind)
    assert AuditRow.objects.filter(engine_id=engine.pk).exclude(action="health_check").count() == before


def test_worker_that_takes_nothing_any_more_ends_and_is_started_again(stack, product):
    """Alive and deaf, as after a reconnect that went wrong: no message of its queue comes to it."""
    deaf = stack.pid("ops")
    with thieves("lifecycle"):
        answer = stack.call("POST", "/engines/provision", product.key, {"user_id": "alice"}, Prefer="respond-async")
        assert answer.status_code == 202
        waiting.until(lambda: stack.pid("ops") != deaf, STALLED_S + 20, "it has ended, and there is another one")
    assert "worker_stalled" in stack.log("ops")
    engine = Engine.objects.get()
    waiting.until(lambda: fleet.operation_ended(engine.pk, Kind.PROVISION), 30)
    fleet.check_settled(engine.pk, Kind.PROVISION)


def caught():
    return [each for each in valkey.client().client_list() if each["name"] == "thief"]


@contextmanager
def thieves(queue):
    """Clients that take all messages of the queue: Valkey serves who has waited longest, and a worker asks anew each second."""
    client = redis.Redis.from_url(settings.REDIS_URL, socket_timeout=None, retry=None, client_name="thief")

    def steal():
        with suppress(redis.ConnectionError):
            while True:
                client.brpop(queue, timeout=0)

    threads = [threading.Thread(target=steal, daemon=True) for _ in range(5)]
    for thread in threads:
        thread.start()
    waiting.until(lambda: [int(thief["idle"]) >= 2 for thief in caught()] == [True] * 5, 10, "nobody has waited longer")
    try:
        yield
    finally:
        for thief in caught():
            valkey.client().client_kill_filter(_id=thief["id"])
        for thread in threads:
            thread.join(5)


def test_worker_frozen_in_a_stop_finds_the_engine_destroyed(stack, second_worker, product):
    with ThreadPoolExecutor() as pool:
        request, engine = begin(stack, product, pool, Kind.STOP)
        frozen = stack.freeze("ops")
        second_worker()
        assert stack.call("DELETE", "/engines/alice", product.key).status_code == 200
        request.result()
    before, lines = AuditRow.objects.filter(engine_id=engine.pk).count(), len(stack.log("ops"))
    stack.thaw(frozen)
    waiting.until(lambda: "lease_lost" in stack.log("ops")[lines:], 30, "the frozen worker notices that its lease is gone")
    fleet.check_settled(engine.pk, Kind.DESTROY)
    assert AuditRow.objects.filter(engine_id=engine.pk).count() == before
    assert "Traceback" not in stack.log("ops")[lines:]


def test_ten_provisions_survive_the_death_of_every_celery_process(stack, product):
    with ThreadPoolExecutor(10) as pool:
        bodies = [{"user_id": f"user-{n}"} for n in range(10)]
        requests_ = [pool.submit(stack.call, "POST", "/engines/provision", product.key, body, 30) for body in bodies]
        waiting.until(lambda: Operation.objects.filter(attempt=1).exists(), 10, "a worker is at one of them")
        waiting.until(partial(waiting.passed, waiting.now(), 0.15), 1)
        for name in (*WORKERS, "health", "keeper", "beat"):
            stack.kill(name)
        waiting.until(lambda: Engine.objects.filter(status="running").count() == 10, 60, "ten engines run")
        [request.exception() for request in requests_]
    assert Engine.objects.count() == 10
    assert AuditRow.objects.filter(action="provision").count() == 10
    assert Operation.objects.filter(attempt__gt=1).exists()  # boots take longer than that: the death came in the middle
    fleet.check_agrees(Engine.objects.values_list("pk", flat=True))
