"""One product's flood of boots holds up nobody else's work; on `small`, whose threads are shared, nothing that hangs does."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from audit import actors
from engines import lifecycle
from engines.models import Engine, Kind, Operation
from policy import environments
from tests import waiting
from tests.conftest import make_product, running_stack
from tests.reliability import matrix
from tests.stack import Stack

pytestmark = pytest.mark.alone
FLOOD = 500
GRACE_S = 6
ENVIRONMENT = {
    "ORCH_ENGINE_BACKEND": "subprocess",
    "ORCH_STOP_GRACE_S": str(GRACE_S),
    "ORCH_ENGINE_ENV_PASSTHROUGH": "DEMO_FAULTS",
    "DEMO_FAULTS": "1",
}
# Few places, so that few engines fill them.
PLACES = {
    "ORCH_MAX_BOOTS": "4",
    "ORCH_WAKE_BOOTS": "1",
    "ORCH_PRODUCT_MAX_OPERATIONS": "2",
    "ORCH_WAKE_CONCURRENCY": "2",
    "ORCH_OPS_CONCURRENCY": "5",
    "ORCH_BACKGROUND_CONCURRENCY": "2",
    "ORCH_HEALTH_CHECK_INTERVAL_S": "1",
}
TURN_S = 2  # within which what has its turn is at a thread


@pytest.fixture(scope="module")
def small_stack(database) -> Iterator[Stack]:
    with running_stack(edition="small", **ENVIRONMENT, **PLACES) as processes:
        yield processes


@pytest.fixture(params=["full", "small"])
def stack(request, db) -> Iterator[Stack]:
    if request.param == "small":
        yield request.getfixturevalue("small_stack")
    else:
        with running_stack(**ENVIRONMENT) as processes:
            yield processes


def waited_s(kind, product):
    """Between the newest operation of that kind of the product, and its start by a worker; seconds of the database's clock."""
    operation = Operation.objects.filter(kind=kind, engine__product=product).latest("created_at")
    return (operation.attempt_started_at - operation.created_at).total_seconds()


def test_flood_of_one_product_holds_up_no_other(stack):
    large, small = make_product("large"), make_product("small")
    environments.replace(large.pk, {"DEMO_BOOT_DELAY_S": "20"}, by=actors.ADMIN)
    provide(stack, small, "sleeper", "stopper")

    def provision(number):
        return ask(stack, large, "POST", "/engines/provision", {"user_id": f"user-{number}"})

    with ThreadPoolExecutor(8) as pool:
        answers = pool.map(provision, range(FLOOD))
        wakes = []
        for _ in range(3):  # while the flood comes in, and after
            put_to_sleep(small)
            wake(stack, small)
            wakes.append(waited_s(Kind.WAKE, small))
        assert set(answers) == {202}
    assert max(wakes) < TURN_S
    assert Operation.objects.filter(kind=Kind.PROVISION, state="pending", engine__product=large).count() > FLOOD / 2

    assert stack.call("POST", "/engines/stopper/stop", small.key).status_code == 200
    assert waited_s(Kind.STOP, small) < TURN_S
    assert stack.call("POST", "/engines/provision", small.key, {"user_id": "newcomer"}).status_code == 200
    assert waited_s(Kind.PROVISION, small) < 5
    assert 0 < in_flight(engine__product=large) <= int(stack.environment.get("ORCH_PRODUCT_MAX_OPERATIONS", "10"))
    last = stack.call("GET", f"/operations/{Operation.objects.filter(engine__product=large).latest('created_at').pk}", large.key)
    assert last.json()["queue_position"] > FLOOD / 2


def provide(stack, product, *users):
    """Have running engines of these users."""
    with ThreadPoolExecutor(len(users)) as pool:
        bodies = [{"user_id": user} for user in users]
        answers = pool.map(lambda body: stack.call("POST", "/engines/provision", product.key, body).status_code, bodies)
        assert set(answers) == {200}


def ask(stack, product, method, path, body=None):
    """Ask without waiting for the end; the answer's status."""
    return stack.call(method, path, product.key, body, Prefer="respond-async").status_code


def wake(stack, product):
    answer = stack.call("POST", "/engines/sleeper/admit", product.key, {"auto_wake": True})
    assert answer.json()["admitted"], answer.text


def put_to_sleep(product):
    """Have the user's engine asleep."""
    engine = Engine.objects.get(product=product, user_id="sleeper")
    lifecycle.sleep(engine, by=actors.ADMIN)
    waiting.until(lambda: Engine.objects.get(pk=engine.pk).status == "sleeping", 20)


def in_flight(**where):
    return Operation.objects.filter(state="running", **where).count()


# -- The threads of `small` ----------------------------------------------------------------------------------------------------


def test_nothing_that_hangs_takes_the_thread_of_another(small_stack, db):
    """Every boot that is no wake hangs; then whatever ends an engine hangs, too, in each queue that does so."""
    stack, ours = small_stack, make_product("ours")
    provide(stack, ours, "sleeper", "kept", "first", "second")
    others = [make_product(f"other-{number}") for number in range(4)]
    for other in others:
        provide(stack, other, "busy")

    for other in others:
        environments.replace(other.pk, {"DEMO_BOOT_DELAY_S": "40"}, by=actors.ADMIN)
        assert ask(stack, other, "POST", "/engines/provision", {"user_id": "hanging"}) == 202
    waiting.until(lambda: in_flight(kind=Kind.PROVISION) == 3, 5, "all boots but a wake's hang")
    put_to_sleep(ours)
    check_others_work(stack, ours)
    assert stack.call("DELETE", "/engines/first", ours.key).status_code == 200
    assert waited_s(Kind.DESTROY, ours) < TURN_S

    put_to_sleep(ours)
    fill_ends(stack, others)
    assert ask(stack, ours, "DELETE", "/engines/second") in (200, 202)
    check_others_work(stack, ours)
    assert (in_flight(queue="lifecycle"), in_flight(queue="background")) == (5, 2)
    assert in_flight(kind=Kind.PROVISION) == 3
    destroy = Operation.objects.get(engine__user_id="second", kind=Kind.DESTROY)
    waiting.until(lambda: Operation.objects.get(pk=destroy.pk).state == "succeeded", 3 * GRACE_S, "it has its turn")
    destroy.refresh_from_db()
    room = Operation.objects.filter(kind=Kind.STOP).order_by("finished_at").first().finished_at
    assert 0 <= (destroy.attempt_started_at - room).total_seconds() < TURN_S


def fill_ends(stack, others):
    """Two stops and two sleeps, of engines that do not end before the grace is over."""
    for number, other in enumerate(others):
        engine = Engine.objects.get(product=other, user_id="busy")
        matrix.order_fault(*matrix.reach(engine), mode="busy", seconds=60)
        if number < 2:
            assert ask(stack, other, "POST", "/engines/busy/stop") == 202
        else:
            lifecycle.sleep(engine, by=actors.ADMIN)
    waiting.until(lambda: in_flight(kind__in=(Kind.STOP, Kind.SLEEP)) == 4, 3, "each has a thread")


def check_others_work(stack, product):
    """A wake gets its thread at once, and so do the periodic jobs: a probe."""
    wake(stack, product)
    assert waited_s(Kind.WAKE, product) < TURN_S
    kept = Engine.objects.get(product=product, user_id="kept")
    waiting.until(lambda: Engine.objects.get(pk=kept.pk).last_health_at > kept.last_health_at, 1 + TURN_S, "it is probed")


def test_periodic_jobs_go_on_when_the_worker_was_killed(small_stack, db):
    """Beat is in the worker, and dies with it."""
    product = make_product()
    provide(small_stack, product, "alice")
    waiting.until(lambda: Engine.objects.get().last_health_at, 5, "its engine is probed")
    killed = small_stack.pid("worker")
    small_stack.kill("worker")
    waiting.until(lambda: small_stack.pid("worker") != killed, 5, "there is another one")
    probed = Engine.objects.get().last_health_at
    waiting.until(lambda: Engine.objects.get().last_health_at > probed, 30, "its engine is probed again")
    assert Operation.objects.count() == 1  # and was not taken for dead
