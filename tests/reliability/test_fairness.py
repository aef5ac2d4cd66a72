"""One product's flood of boots holds up nobody else's work."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from audit import actors
from engines.models import Engine, Kind, Operation
from policy import environments
from tests import waiting
from tests.conftest import make_product, running_stack
from tests.stack import Stack

FLOOD = 500
ENVIRONMENT = {
    "ORCH_ENGINE_BACKEND": "subprocess",
    "ORCH_STOP_GRACE_S": "5",
    "ORCH_ENGINE_ENV_PASSTHROUGH": "DEMO_FAULTS",
    "DEMO_FAULTS": "1",
}


@pytest.fixture
def stack(db) -> Iterator[Stack]:
    with running_stack(**ENVIRONMENT) as processes:
        yield processes


def waited_s(kind, product):
    """Between the newest operation of that kind of the product, and its start by a worker; seconds of the database's clock."""
    operation = Operation.objects.filter(kind=kind, engine__product=product).latest("created_at")
    return (operation.attempt_started_at - operation.created_at).total_seconds()


def test_flood_of_one_product_holds_up_no_other(stack):
    large, small = make_product("large"), make_product("small")
    environments.replace(large.pk, {"DEMO_BOOT_DELAY_S": "20"}, by=actors.ADMIN)
    for user in ("sleeper", "stopper"):
        assert stack.call("POST", "/engines/provision", small.key, {"user_id": user}).status_code == 200

    def provision(number):
        body = {"user_id": f"user-{number}"}
        return stack.call("POST", "/engines/provision", large.key, body, Prefer="respond-async").status_code

    with ThreadPoolExecutor(8) as pool:
        answers = pool.map(provision, range(FLOOD))
        wakes = []
        for _ in range(3):  # while the flood comes in, and after
            put_to_sleep(small)
            answer = stack.call("POST", "/engines/sleeper/admit", small.key, {"auto_wake": True})
            assert answer.json()["admitted"], answer.text
            wakes.append(waited_s(Kind.WAKE, small))
        assert set(answers) == {202}
    assert max(wakes) < 2
    assert Operation.objects.filter(kind=Kind.PROVISION, state="pending", engine__product=large).count() > FLOOD / 2

    assert stack.call("POST", "/engines/stopper/stop", small.key).status_code == 200
    assert waited_s(Kind.STOP, small) < 2
    assert stack.call("POST", "/engines/provision", small.key, {"user_id": "newcomer"}).status_code == 200
    assert waited_s(Kind.PROVISION, small) < 5
    assert in_flight(large) <= 10
    last = stack.call("GET", f"/operations/{Operation.objects.filter(engine__product=large).latest('created_at').pk}", large.key)
    assert last.json()["queue_position"] > FLOOD / 2


def put_to_sleep(product):
    """Have the user's engine asleep."""
    from engines import lifecycle

    engine = Engine.objects.get(product=product, user_id="sleeper")
    lifecycle.sleep(engine, by=actors.ADMIN)
    waiting.until(lambda: Engine.objects.get(pk=engine.pk).status == "sleeping", 20)


def in_flight(product):
    return Operation.objects.filter(state="running", kind=Kind.PROVISION, engine__product=product).count()
