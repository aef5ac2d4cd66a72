"""`max_engines` and "one engine per user" hold whatever comes at the same time. (Over HTTP: api/test_server.)"""

from audit import actors
from audit.models import AuditRow
from engines import admission, lifecycle
from engines.errors import Crowded, EngineError, Unfinished
from engines.models import Engine, Operation
from policy.errors import QuotaExceeded
from tests import floods
from tests.conftest import make_product
from tests.engines.crew import in_parallel
from tests.engines.registry import put_engine

ACME = actors.product("acme")


def kinds(results):
    """How many of each class."""
    return {kind: sum(type(result) is kind for result in results) for kind in {type(result) for result in results}}


def test_provisions_at_once_at_the_limit_give_one_engine(db):
    product = make_product(policy={"max_engines": 3})
    for user_id in ("bob", "carol"):
        put_engine(product, user_id, "stopped")
    results = in_parallel(lambda number: lifecycle.provision(product, f"user-{number}", by=ACME), range(200), threads=16)
    assert kinds(results) == {Operation: 1, QuotaExceeded: 199}
    assert Engine.objects.count() == 3
    floods.written()
    rest, first = AuditRow.objects.filter(action="provision_denied")
    assert (first.metadata.get("count"), rest.metadata["count"]) == (None, 198)
    assert AuditRow.objects.filter(action="provision_requested").count() == 1


def test_provisions_at_once_of_one_user_give_one_engine(db):
    product = make_product(policy={"max_engines": 1})
    results = in_parallel(lambda _: lifecycle.provision(product, "alice", by=ACME), range(50), threads=16)
    assert kinds(results) == {Operation: 50}
    assert len({operation.pk for operation in results}) == 1
    assert Engine.objects.count() == AuditRow.objects.filter(action="provision_requested").count() == 1
    assert not AuditRow.objects.filter(action="provision_denied").exists()


def test_admits_and_provisions_at_once_share_the_quota(db):
    product = make_product(policy={"max_engines": 5})

    def ask(number):
        user_id = f"user-{number // 2 % 10}"  # of each user both, so that there are admits of those who have an engine
        if number % 2:
            return lifecycle.provision(product, user_id, by=ACME)
        return admission.admit(product, user_id, auto_provision=True, auto_wake=False, timeout_s=0)

    results = in_parallel(ask, range(60), threads=16)
    # On a slow machine an admit may find the gate crowded: all of them are behind one lock, beside as many provisions.
    assert set(kinds(results)) - {Crowded} == {Operation, Unfinished, QuotaExceeded}
    assert Engine.objects.count() == Operation.objects.count() == 5


def test_destroyed_engine_frees_its_place_once_it_is_gone(carry_out, db):
    product = make_product(policy={"max_engines": 1})
    engine = put_engine(product, "bob")
    operation = lifecycle.destroy(engine, by=ACME)
    (refused,) = in_parallel(lambda _: lifecycle.provision(product, "alice", by=ACME), range(1))
    assert isinstance(refused, QuotaExceeded)
    carry_out(operation)
    assert lifecycle.provision(product, "alice", by=ACME).kind == "provision"


def test_verbs_at_once_open_one_operation(product):
    engine = put_engine(product)
    verbs = [lifecycle.stop, lifecycle.restart, lifecycle.rotate_key, lifecycle.sleep]
    results = in_parallel(lambda number: verbs[number % 4](engine, by=ACME), range(32), threads=16)
    opened = [result for result in results if isinstance(result, Operation)]
    assert len({operation.pk for operation in opened}) == 1
    assert all(isinstance(result, Operation | EngineError) for result in results), results
    assert Operation.objects.count() == 1
