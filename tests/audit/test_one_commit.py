"""A change and its row commit together: while the log refuses rows, no verb changes anything."""

import pytest
from django.db import DatabaseError

from audit.actors import SYSTEM
from engines import lifecycle, operations
from engines.health import loop, probes
from engines.lifecycle import outcomes
from engines.models import Engine, Kind, Operation, Status
from policy import products
from policy.errors import QuotaExceeded
from policy.models import PlatformKey, Product
from tests.audit.lives import ERROR, STAFF, ending, fresh, put

TABLES = ("audit_log", "engines_engine", "engines_operation", "engines_host", "policy_product", "policy_platformkey")


@pytest.fixture
def everything(superuser):
    """All that there is in our tables, to be compared with later."""

    def read():
        return {table: sorted(map(repr, superuser.execute(f"SELECT * FROM {table}").fetchall())) for table in TABLES}

    return read


@pytest.fixture
def changes_nothing(everything, broken_log):
    """Call a verb while the log is broken: it has to fail and leave all as it was. Then again; returns what it returned."""

    def check(verb):
        before = everything()
        with broken_log(), pytest.raises(DatabaseError, match="the log is broken"):
            verb()
        assert everything() == before
        result = verb()
        assert len(everything()["audit_log"]) > len(before["audit_log"])
        return result

    return check


# -- intents that have a row -------------------------------------------------------------------------------------------


def test_provision(product, changes_nothing):
    changes_nothing(lambda: lifecycle.provision(product, "alice", by=STAFF))
    assert Engine.objects.get().status == "provisioning"


def test_provision_refused_by_policy(product, changes_nothing):
    product = products.update_policy(product.pk, {"max_engines": 0}, by=STAFF)

    def refused():
        with pytest.raises(QuotaExceeded):
            lifecycle.provision(product, "alice", by=STAFF)

    changes_nothing(refused)


@pytest.mark.parametrize("status", [Status.RUNNING, Status.STOPPED, Status.SLEEPING, Status.FAILED])
def test_destroy(product, changes_nothing, status):
    engine = put(product, status)
    changes_nothing(lambda: lifecycle.destroy(engine, by=STAFF))
    assert fresh(engine).status == "destroying"


def test_destroy_that_supersedes(product, changes_nothing):
    engine = put(product)
    stop = lifecycle.stop(engine, by=STAFF)
    changes_nothing(lambda: lifecycle.destroy(engine, by=STAFF))
    assert Operation.objects.get(pk=stop.pk).state == "superseded"


def test_cancel_sleep(product, changes_nothing):
    engine = put(product)
    lifecycle.sleep(engine, by=STAFF)
    assert changes_nothing(lambda: lifecycle.cancel_sleep(engine, by=STAFF))


def test_auto_restart(product, changes_nothing):
    engine = put(product, Status.FAILED)
    assert changes_nothing(lambda: lifecycle.auto_restart(engine.pk, by=SYSTEM))


def test_reveal_key(product, changes_nothing):
    engine = put(product)
    assert changes_nothing(lambda: lifecycle.reveal_key(engine, by=STAFF)).startswith("sk-sept-")


def test_mark_failed(product, changes_nothing):
    engine = put(product)
    Engine.objects.filter(pk=engine.pk).update(restart_attempts=99)  # two rows: `auto_restart_gave_up`, too
    assert changes_nothing(lambda: lifecycle.mark_failed(engine.pk, engine.seq, by=SYSTEM, why={"cause": "probes"}, may_run=True))
    assert fresh(engine).status == "failed"


def test_judge(product, changes_nothing):
    engine = put(product)
    target = probes.Target(engine.pk, engine.seq, engine.port, engine.key_hash)
    changes_nothing(lambda: loop.judge([target], [probes.Result(True, "ok", proven=True)]))
    assert fresh(engine).last_health_ok


# -- outcomes ----------------------------------------------------------------------------------------------------------

VERBS = [
    (Kind.START, lifecycle.start, Status.STOPPED),
    (Kind.START, lifecycle.start, Status.FAILED),
    (Kind.STOP, lifecycle.stop, Status.RUNNING),
    (Kind.SLEEP, lifecycle.sleep, Status.RUNNING),
    (Kind.WAKE, lifecycle.wake, Status.SLEEPING),
    (Kind.RESTART, lifecycle.restart, Status.RUNNING),
    (Kind.ROTATE_KEY, lifecycle.rotate_key, Status.RUNNING),
    (Kind.DESTROY, lifecycle.destroy, Status.RUNNING),
]


@pytest.mark.parametrize("error", [None, ERROR], ids=["succeeded", "failed"])
@pytest.mark.parametrize(("kind", "verb", "status"), VERBS, ids=[f"{kind} {status}" for kind, _, status in VERBS])
def test_settle(product, changes_nothing, kind, verb, status, error):
    engine = put(product, status)
    operation = verb(engine, by=STAFF)
    assert operation.kind == kind
    assert changes_nothing(ending(engine, error=error))
    operation.refresh_from_db()
    assert operation.state == ("failed" if error else "succeeded")


@pytest.mark.parametrize("error", [None, ERROR], ids=["succeeded", "failed"])
def test_settle_provision(product, changes_nothing, error):
    engine = lifecycle.provision(product, "alice", by=STAFF).engine
    assert changes_nothing(ending(engine, error=error))


@pytest.mark.parametrize("retry_in_s", [5.0, None])
def test_settle_failed_restart(product, changes_nothing, retry_in_s):
    engine = put(product, Status.FAILED)
    operation = lifecycle.auto_restart(engine.pk, by=SYSTEM)
    lease = operations.claim(operation.pk)
    outcome = outcomes.restart_failed(operation, lease.attempt, ERROR, retry_in_s)
    assert changes_nothing(lambda: lifecycle.settle(lease, operation, outcome))


# -- products ----------------------------------------------------------------------------------------------------------


def test_register(db, changes_nothing):
    changes_nothing(lambda: products.register("acme", "Acme", {"max_engines": 3}, by=STAFF))
    assert Product.objects.count() == PlatformKey.objects.count() == 1


def test_update_policy(product, changes_nothing):
    assert changes_nothing(lambda: products.update_policy(product.pk, {"max_engines": 3}, by=STAFF)).policy == {"max_engines": 3}


def test_issue_and_revoke_key(product, changes_nothing):
    key, _ = changes_nothing(lambda: products.issue_key(product, by=STAFF))
    changes_nothing(lambda: products.revoke_key(key.pk, by=STAFF))
    assert products.authenticate(product.key) is not None
