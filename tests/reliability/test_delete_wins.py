"""A destroy in the middle of a long boot: it does not wait, nothing remains, and the boot's late result is refused."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from audit.models import AuditRow
from engines.models import Engine, Kind, Operation, OperationState
from tests import waiting
from tests.conftest import make_product
from tests.reliability import fleet

GRACE_S = 5
ENVIRONMENT = {
    "ORCH_STOP_GRACE_S": str(GRACE_S),
    "ORCH_BOOT_TIMEOUT_S": "90",
    "ORCH_ENGINE_ENV_PASSTHROUGH": "DEMO_FAULTS,DEMO_BOOT_DELAY_S",
    "DEMO_FAULTS": "1",
    "DEMO_BOOT_DELAY_S": "60",
}


@pytest.mark.parametrize("count", [1, 10])
def test_destroy_in_the_middle_of_a_boot_wins(stack, runtime, db, count):
    """One web process, as many as it lets wait by default, and a caller who waits behind each of the provisions.

    Each has a product, and so a network, of its own: Docker 20.10 may lock up when containers of one end at once.
    """
    users = [f"user-{n}" for n in range(count)]
    keys = {user: make_product(user).key for user in users}
    with ThreadPoolExecutor(2 * count) as pool:
        for user in users:
            pool.submit(stack.call, "POST", "/engines/provision", keys[user], {"user_id": user})
        waiting.until(lambda: all(map(boots, users)), 30, "every engine boots")
        since = waiting.now()
        waiting.until(lambda: waiting.passed(since, 1), 2)
        lost = stack.log("ops").count("lease_lost")
        began = time.monotonic()
        answers = list(pool.map(lambda user: stack.call("DELETE", f"/engines/{user}", keys[user]), users))
        assert time.monotonic() - began < GRACE_S + 5
    assert [answer.status_code for answer in answers] == [200] * count, [answer.text for answer in answers]
    waiting.until(lambda: stack.log("ops").count("lease_lost") >= lost + count, 30, "the late workers notice")
    provisions = Operation.objects.filter(kind=Kind.PROVISION)
    assert {operation.state for operation in provisions} == {OperationState.SUPERSEDED}
    assert not AuditRow.objects.filter(action__in=["provision", "provision_failed"]).exists()
    assert AuditRow.objects.filter(action="destroy").count() == count
    fleet.check_agrees(Engine.objects.values_list("pk", flat=True), runtime)


def boots(user: str) -> bool:
    operation = Operation.objects.filter(kind=Kind.PROVISION, engine__user_id=user).first()
    return operation is not None and any(step["step"] == "waiting_for_health" for step in operation.steps)
