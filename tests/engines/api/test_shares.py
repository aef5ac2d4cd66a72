"""What products share in one web process: a product that takes all it can get leaves to another product what it needs."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from common import valkey
from config.celery import app
from engines.backends.memory import Behaviour
from engines.models import Engine, Operation
from tests import waiting
from tests.conftest import empty, make_product, running_stack
from tests.engines.registry import put_engine
from tests.envelopes import assert_error
from tests.freezing import freeze_at_rest

NEVER_HEALTHY = Behaviour(boot_s=3600)


@pytest.fixture(scope="module")
def stack(database, django_db_blocker):
    """One web process with the shipped sizes, and a worker for everything."""
    empty()
    with django_db_blocker.unblock(), running_stack("web", "worker", edition="small", ORCH_ENGINE_BACKEND="memory") as made:
        yield made


@pytest.fixture
def greedy(db):
    return make_product("greedy")


@pytest.fixture
def modest(db):
    return make_product("modest")


@pytest.fixture
def pool():
    with ThreadPoolExecutor(32) as threads:
        yield threads


def assert_crowded(answer):
    """The error of an answer that asks for a retry."""
    error = assert_error(answer, 503, "UNAVAILABLE")
    assert 1 <= int(answer.headers["Retry-After"]) <= 3
    return error


def answered(asked):
    return [each.result() for each in asked if each.done()]


def test_provision_waits_for_its_result_while_another_product_takes_all_places(stack, memory_backend, greedy, modest, pool):
    """Twenty provisions of engines that never get healthy, with places for eight requests."""

    def provision(product, user_id):
        return pool.submit(stack.call, "POST", "/engines/provision", product.key, {"user_id": user_id})

    memory_backend.behave(None, NEVER_HEALTHY)
    asked = [provision(greedy, f"user-{number}") for number in range(20)]
    waiting.until(lambda: len(answered(asked)) == 12, 15, "all but eight are told to come back")

    own = provision(modest, "alice")
    engine = waiting.until(lambda: Engine.objects.filter(product=modest).first(), 10, "it is asked for")
    waiting.until(lambda: len(answered(asked)) == 13, 5, "the greedy product gives a place back")
    assert not own.done()
    memory_backend.behave({engine.pk}, Behaviour())
    assert own.result(15).json()["status"] == "running"

    for answer in answered(asked):
        operation_id = assert_crowded(answer)["details"]["operation_id"]
        shown = stack.call("GET", f"/operations/{operation_id}", greedy.key).json()
        assert (shown["kind"], shown["state"] in ("pending", "running")) == ("provision", True)
    memory_backend.behave(None, Behaviour())
    assert Counter(each.result().status_code for each in asked) == {503: 13, 200: 7}
    waiting.until(lambda: not Operation.objects.filter(finished_at=None).exists(), 30, "what was answered early goes on")


def test_destroys_are_waited_for_whatever_else_waits(stack, memory_backend, greedy, modest, pool):
    """Twenty provisions want the eight places, and then twenty destroys of one product come: more than there are threads."""
    for number in range(20):
        put_engine(modest, f"user-{number}")
    memory_backend.behave(None, NEVER_HEALTHY)
    asked = [pool.submit(stack.call, "POST", "/engines/provision", greedy.key, {"user_id": f"user-{n}"}) for n in range(20)]
    waiting.until(lambda: len(answered(asked)) == 12, 15, "all but eight are told to come back")
    frozen = freeze_at_rest(stack, "worker")
    try:
        with ThreadPoolExecutor(20) as callers:
            destroyed = [callers.submit(stack.call, "DELETE", f"/engines/user-{n}", modest.key) for n in range(20)]
            waiting.until(lambda: len(waited_for()) == 28, 30, "all destroys are waited for, and eight provisions")
            assert stack.call("GET", "/engines", modest.key, timeout=5).json()["total"] == 20
            assert not answered(destroyed)
            stack.thaw(frozen)
            assert Counter(each.result().status_code for each in destroyed) == {200: 20}
    finally:
        stack.thaw(frozen)
    memory_backend.behave(None, Behaviour())
    waiting.until(lambda: not Operation.objects.filter(finished_at=None).exists(), 30, "what was answered early goes on")


def waited_for():
    """The operations for whose end somebody waits."""
    return valkey.client().pubsub_channels("operation:*")


def test_logs_are_read_while_another_product_polls_for_its_own(stack, greedy, modest, pool):
    """Nobody reads logs for a moment, so that eight pollers take all the places they get."""
    for product in (greedy, modest):
        stack.call("POST", "/engines/provision", product.key, {"user_id": "alice"})

    def read(product):
        return pool.submit(stack.call, "GET", "/engines/alice/logs", product.key)

    def sent():
        with app.connection_for_read() as broker:
            return broker.default_channel.client.llen("health")

    frozen = freeze_at_rest(stack, "worker")
    try:
        polled = [read(greedy) for _ in range(8)]
        waiting.until(lambda: len(answered(polled)) == 5, 4, "all but three are told to come back")
        for answer in answered(polled):
            assert_crowded(answer)
        before, own = sent(), read(modest)
        waiting.until(lambda: own.done() or sent() > before, 2, "the other product's request is sent to a worker")
    finally:
        stack.thaw(frozen)
    assert own.result().status_code == 200, own.result().text
    assert Counter(each.result().status_code for each in polled) == {503: 5, 200: 3}


def test_request_is_answered_while_another_product_holds_all_the_threads_it_gets(stack, greedy, modest, superuser, pool):
    """Twenty lists of engines while the table of engines is locked; some clients do not stay. Twice: the threads come back."""
    put_engine(modest, "alice")

    def list_engines(number):
        return stack.call("GET", "/engines", greedy.key, timeout=2 if number % 2 else 60)

    for _ in range(2):
        with superuser.transaction():
            superuser.execute("LOCK TABLE engines_engine IN ACCESS EXCLUSIVE MODE")
            asked = [pool.submit(list_engines, number) for number in range(20)]
            waiting.until(lambda asked=asked: sum(is_refused(each) for each in asked) == 8, 15, "the share is twelve threads")
            for path in ("/audit", "/audit?limit=1"):
                assert stack.call("GET", path, modest.key, timeout=10).status_code == 200
            assert_crowded(stack.call("GET", "/audit", greedy.key, timeout=10))
            waiting.until(lambda asked=asked: sum(is_gone(each) for each in asked) > 0, 10, "some clients are gone")
        waiting.until(lambda asked=asked: all(each.done() for each in asked), 20, "the others are answered")
        assert set(Counter(each.result().status_code for each in asked if not is_gone(each))) <= {200, 503}
        assert stack.call("GET", "/engines", modest.key).json()["total"] == 1


def is_gone(asked):
    return asked.done() and isinstance(asked.exception(), requests.Timeout)


def is_refused(asked):
    return asked.done() and not asked.exception() and asked.result().status_code == 503
