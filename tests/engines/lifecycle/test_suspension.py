"""A suspended product: what is refused and what is not, its engines stopped or left, and what the log says of it."""

from datetime import timedelta

import pytest
from django.conf import settings
from django.db import transaction
from django.db.models.functions import Now
from django.test import Client

from audit import actors
from audit.models import AuditRow
from engines import admission, lifecycle
from engines.lifecycle.products import _stop_suspended
from engines.models import Engine, Kind, Operation, Status, Trigger
from policy import products
from policy.errors import ProductNotFound, ProductSuspended
from policy.models import Product
from tests.engines import admits
from tests.engines.crew import in_parallel
from tests.engines.registry import put_engine, put_operation
from tests.envelopes import assert_error

ACME = actors.product("acme")
ADMIN = actors.ADMIN


@pytest.fixture
def admin(db):
    """The REST API as the operator calls it."""
    return Client(headers={"X-Admin-Key": settings.ENV.admin_key})


def suspend(admin, product, **body):
    return admin.post(f"/products/{product.pk}/suspend", {"reason": "unpaid", **body}, "application/json")


def resume(admin, product, reason="paid"):
    return admin.post(f"/products/{product.pk}/resume", {"reason": reason}, "application/json")


def rows(*actions):
    found = AuditRow.objects.filter(action__in=actions).order_by("id")
    return [(row.action, row.actor, row.user_id, row.metadata) for row in found]


REFUSAL = {"rule": "suspended", "limit": "active", "value": "suspended"}

# -- refused and not -----------------------------------------------------------------------------------------------------------


def test_suspend_refuses_admits_and_provisions_from_the_next_request_on(admin, api, product):
    put_engine(product)
    assert api.call("POST", "/engines/alice/admit").status_code == 200
    suspend(admin, product)
    for answer in (
        api.call("POST", "/engines/alice/admit"),
        api.call("POST", "/engines/bob/admit", {"auto_provision": True}),
        api.call("POST", "/engines/provision", {"user_id": "bob"}),
    ):
        error = assert_error(answer, 403, "PRODUCT_SUSPENDED")
        assert error["details"] == REFUSAL
        assert error["message"].startswith("The product is suspended. ")
        assert "unpaid" not in answer.text
    assert rows("admit_denied", "provision_denied") == [
        ("admit_denied", "acme", "alice", REFUSAL), ("provision_denied", "acme", "bob", REFUSAL),
    ]  # fmt: skip
    assert not Engine.objects.filter(user_id="bob").exists()


def test_suspend_refuses_whatever_brings_an_engine_up(product):
    stopped, asleep = put_engine(product, "a", Status.STOPPED), put_engine(product, "b", Status.SLEEPING)
    failed = put_engine(product, "c", Status.FAILED)
    products.suspend(product.pk, "unpaid", by=ADMIN)
    for verb, engine in ((lifecycle.start, stopped), (lifecycle.wake, asleep), (lifecycle.restart, failed)):
        with pytest.raises(ProductSuspended):
            verb(engine, by=ACME if verb != lifecycle.restart else actors.staff("rita"))
    assert not Operation.objects.exists()
    assert rows("start_denied") == [  # the wake is counted with the start: one rule, one actor
        ("start_denied", "acme", "a", {"verb": "start", **REFUSAL}),
        ("start_denied", "admin:rita", "c", {"verb": "restart", **REFUSAL}),
    ]


def test_suspend_leaves_reads_stop_rotation_and_destroy(admin, api, product):
    for user_id in ("alice", "bob", "carol"):
        put_engine(product, user_id)
    suspend(admin, product)
    assert api.call("GET", "/engines/alice").status_code == api.call("GET", "/status").status_code == 200
    prefer = {"Prefer": "respond-async"}
    assert api.call("POST", "/engines/alice/stop", **prefer).status_code == 202
    assert api.call("DELETE", "/engines/bob", **prefer).status_code == 202
    assert api.call("POST", "/engines/carol/rotate-key", **prefer).status_code == 202


def test_suspended_products_engine_is_restarted_when_it_fails(product):
    failed = put_engine(product, status=Status.FAILED, next_restart_at=Now() - timedelta(seconds=1))
    away = put_engine(product, "bob")
    products.suspend(product.pk, "unpaid", by=ADMIN)
    assert lifecycle.auto_restart(failed.pk, by=actors.SYSTEM).kind == Kind.RESTART
    assert lifecycle.resume(away.pk, away.seq, by=actors.SYSTEM, trigger=Trigger.HOST_RESTARTED).kind == Kind.RESTART


def test_suspend_counts_no_admit(admin, api, product):
    product.policy = {"rate_limit_rpm": 5}
    product.save()
    suspend(admin, product)
    api.call("POST", "/engines/alice/admit")
    resume(admin, product)
    assert api.call("POST", "/engines/alice/admit").headers["RateLimit-Remaining"] == "4"


def test_resume_lets_everything_through_again(admin, api, product):
    put_engine(product)
    suspend(admin, product)
    assert resume(admin, product).json() == {"product_id": str(product.pk), "suspended_at": None, "reason": None}
    assert api.call("POST", "/engines/alice/admit").json()["admitted"] is True
    assert lifecycle.provision(product, "bob", by=ACME).kind == Kind.PROVISION


# -- rows and repeats ----------------------------------------------------------------------------------------------------------


def test_suspend_and_resume_are_rows_once_however_often_they_are_asked_for(admin, product):
    first = suspend(admin, product).json()
    assert (first["reason"], first["stopping"], first["busy"]) == ("unpaid", 0, 0)
    assert suspend(admin, product, reason="something else").json() == first
    resume(admin, product)
    resume(admin, product)
    assert rows("product_suspend", "product_resume") == [
        ("product_suspend", "admin", None, {"reason": "unpaid"}), ("product_resume", "admin", None, {"reason": "paid"}),
    ]  # fmt: skip


@pytest.mark.parametrize("body", [{"reason": ""}, {"reason": 1}, {"reason": "x" * 201}, {"reason": None}])
def test_suspend_wants_a_reason(admin, product, body):
    assert_error(suspend(admin, product, **body), 400, "INVALID_REQUEST")
    assert Product.objects.get().suspended_at is None


def test_suspend_knows_its_product(admin, product):
    product.pk = "00000000-0000-4000-8000-000000000000"
    assert_error(suspend(admin, product), 404, "PRODUCT_NOT_FOUND")
    with pytest.raises(ProductNotFound):
        lifecycle.suspend_product(product.pk, "unpaid", by=ADMIN, stop_engines=True)


# -- engines stopped -----------------------------------------------------------------------------------------------------------


def test_suspend_stops_every_engine_that_runs_or_is_about_to(admin, product, other_product, carry_out):
    for number, status in enumerate((Status.RUNNING, Status.RUNNING, Status.SLEEPING, Status.STOPPED)):
        put_engine(product, f"user-{number}", status)
    put_engine(product, "soon", Status.FAILED, next_restart_at=Now() + timedelta(hours=1))
    put_engine(product, "given-up", Status.FAILED)
    for user_id, kind, status in (("waking", Kind.WAKE, Status.SLEEPING), ("new", Kind.PROVISION, Status.PROVISIONING)):
        put_operation(put_engine(product, user_id, status), kind)
    put_engine(other_product, "theirs")
    answer = suspend(admin, product, stop_engines=True).json()
    assert (answer["stopping"], answer["busy"]) == (3, 2)
    stops = Operation.objects.filter(kind=Kind.STOP)
    assert {stop.engine.user_id for stop in stops} == {"user-0", "user-1", "soon"}
    assert {stop.actor for stop in stops} == {"admin"}
    for stop in stops:
        carry_out(stop)
    assert sorted(rows("stop"), key=str)[1][1:] == (
        "admin",
        "user-0",
        {"attempt": 1, "cause": "requested", "reason": "suspended: unpaid"},
    )
    again = suspend(admin, product, stop_engines=True).json()
    assert (again["stopping"], again["busy"]) == (0, 2)


def test_busy_engines_are_stopped_once_they_are_not(admin, product, carry_out):
    waking = put_operation(put_engine(product, "waking", Status.SLEEPING), Kind.WAKE)
    assert suspend(admin, product, stop_engines=True).json()["busy"] == 1
    assert lifecycle.stop_suspended() == 0
    Operation.objects.filter(pk=waking.pk).update(state="succeeded", finished_at=Now())
    Engine.objects.filter(pk=waking.engine_id).update(status=Status.RUNNING)
    assert lifecycle.stop_suspended() == 1
    assert lifecycle.stop_suspended() == 0
    stop = carry_out(Operation.objects.get(kind=Kind.STOP))
    assert (stop.actor, stop.engine.status, stop.params["reason"]) == ("system", Status.STOPPED, "suspended: unpaid")
    assert stop.queue == "background"  # nobody waits for it
    assert lifecycle.stop_suspended() == 0


def test_engine_that_would_be_restarted_is_stopped_while_its_product_is_suspended(admin, product):
    suspend(admin, product, stop_engines=True)
    put_engine(product, status=Status.FAILED, next_restart_at=Now() + timedelta(hours=1))
    put_engine(product, "given-up", Status.FAILED)
    assert lifecycle.stop_suspended() == 1
    assert Operation.objects.get().engine.user_id == "alice"


def test_engines_run_on_unless_they_are_to_be_stopped(admin, product, other_product):
    suspend(admin, product)
    suspend(admin, other_product, stop_engines=True)
    resume(admin, other_product)
    for owner in (product, other_product):
        put_engine(owner)
    assert lifecycle.stop_suspended() == 0
    suspend(admin, other_product)  # what was wished for before is over with the resume
    assert lifecycle.stop_suspended() == 0


def test_stop_engines_can_be_asked_for_later_and_is_a_row(admin, product):
    put_engine(product)
    suspend(admin, product)
    for _ in range(2):
        assert suspend(admin, product, reason="other", stop_engines=True).json()["reason"] == "unpaid"
    assert suspend(admin, product).json()["stopping"] == 0  # it takes nothing back
    assert Product.objects.get().stops_engines
    assert rows("product_suspend") == [
        ("product_suspend", "admin", None, {"reason": "unpaid"}),
        ("product_suspend", "admin", None, {"reason": "unpaid", "stop_engines": True}),
    ]


def test_engine_of_a_product_that_is_resumed_meanwhile_is_not_stopped(admin, product):
    engine = put_engine(product)
    suspend(admin, product, stop_engines=True)
    Operation.objects.all().delete()
    resume(admin, product)
    assert _stop_suspended(engine) is False
    assert not Operation.objects.exists()


def test_suspend_with_a_key_is_done_once(admin, product):
    put_engine(product)
    headers = {"Idempotency-Key": "once"}
    path, body = f"/products/{product.pk}/suspend", {"reason": "unpaid", "stop_engines": True}
    first = admin.post(path, body, "application/json", headers=headers)
    assert first.json()["stopping"] == 1
    resume(admin, product)
    assert admin.post(path, body, "application/json", headers=headers).content == first.content
    assert Product.objects.get().suspended_at is None


def test_no_engine_starts_once_its_product_is_suspended(product):
    """A start either is there before the suspension, which then sees it, or is refused."""
    engines = [put_engine(product, f"user-{number}", Status.STOPPED) for number in range(12)]

    def ask(number):
        if number == 6:
            return lifecycle.suspend_product(product.pk, "unpaid", by=ADMIN, stop_engines=True)
        return lifecycle.start(engines[number], by=ACME)

    results = in_parallel(ask, range(12))
    suspended = results.pop(6)
    opened = [result for result in results if isinstance(result, Operation)]
    assert all(isinstance(result, Operation | ProductSuspended) for result in results), results
    assert suspended.busy == len(opened) == Operation.objects.count()


def test_starts_of_one_product_do_not_wait_for_each_other(product):
    first, second = put_engine(product, "a", Status.STOPPED), put_engine(product, "b", Status.STOPPED)
    with transaction.atomic():
        lifecycle.start(first, by=ACME)
        (other,) = in_parallel(lambda engine: lifecycle.start(engine, by=ACME), [second])
    assert isinstance(other, Operation), other


def test_admit_that_is_waiting_to_wake_is_refused_by_a_suspension_between(product):
    """The product was read before it was suspended: what the admit leads to asks again, under the lock."""
    put_engine(product, status=Status.SLEEPING)
    admits.count(product, "alice")
    products.suspend(product.pk, "unpaid", by=ADMIN)
    for user_id in ("alice", "bob"):
        with pytest.raises(ProductSuspended):
            admission.admit(product, user_id, auto_provision=True, auto_wake=True, timeout_s=0)
    assert not Operation.objects.exists()
