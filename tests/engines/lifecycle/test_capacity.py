"""The host's ceilings, which count starts in flight."""

import contextlib
from collections import Counter

import pytest
from django.db.models.functions import Now

from audit import actors
from audit.models import AuditRow
from engines import backends, lifecycle, reconcile
from engines.backends.base import Ref, Spec
from engines.errors import CapacityExhausted
from engines.health import loop, probes
from engines.lifecycle import capacity
from engines.models import Engine, Operation, Status
from policy import products
from tests import floods, waiting
from tests.engines.crew import in_parallel
from tests.engines.registry import put_engine
from tests.stack import Stack

ACME = actors.product("acme")


@pytest.fixture
def ceiling(settings):
    """Sets the host's ceilings."""

    def set_ceilings(**ceilings):
        settings.ENV = settings.ENV.model_copy(update=ceilings)

    return set_ceilings


def provision(product, user_id):
    try:
        return lifecycle.provision(product, user_id, by=ACME)
    except CapacityExhausted as full:
        return full


@pytest.fixture
def room_for_five(product):
    """The web server of a host with so much room; what is asked of it, nobody does."""
    with contextlib.closing(Stack(ORCH_HOST_MAX_ENGINES="5", ORCH_WEB_WORKERS="2")) as stack:
        stack.start("web")
        waiting.until(stack.serves, 30, "the web server answers")
        yield stack


def answers(stack, product, *asked):
    """Of all these requests at once, how many got each status and code.

    On a slow machine an admit may find the gate too crowded to begin, and is asked again, as a client would.
    """

    def ask(call):
        while True:
            answer = stack.call(call[0], call[1], product.key, call[2], Prefer="respond-async")
            told = ("accepted" if answer.ok else answer.status_code, answer.json().get("error", {}).get("code"))
            if told != (503, "UNAVAILABLE"):
                return told

    return Counter(in_parallel(ask, asked))


FIVE = {("accepted", None): 5, (503, "CAPACITY_EXHAUSTED"): 45}


def check_rows(verb):
    """The first refusal is a row at once, the others are counted."""
    assert floods.written() == 1
    rest, first = AuditRow.objects.filter(action="capacity_exhausted")
    assert first.metadata == {"verb": verb, "rule": "host_max_engines", "limit": 5, "value": 6}
    assert rest.metadata["count"] == 44


def test_provision_counts_starts_in_flight(room_for_five, product):
    asked = (("POST", "/engines/provision", {"user_id": f"user-{n}"}) for n in range(50))
    assert answers(room_for_five, product, *asked) == FIVE
    assert Engine.objects.count() == Operation.objects.count() == 5
    check_rows("provision")


def test_wake_counts_starts_in_flight(room_for_five, product):
    for number in range(50):
        put_engine(product, f"user-{number}", Status.SLEEPING)
    asked = (("POST", f"/engines/user-{n}/admit", {"auto_wake": True}) for n in range(50))
    assert answers(room_for_five, product, *asked) == FIVE
    assert Operation.objects.filter(kind="wake").count() == Operation.objects.count() == 5
    check_rows("wake")


@pytest.mark.parametrize(
    ("ceilings", "rule"), [({"host_memory_mb": 1000}, "host_memory_mb"), ({"host_disk_mb": 2000}, "host_disk_mb")]
)
def test_provision_counts_memory_and_disk(ceiling, product, ceilings, rule):
    ceiling(engine_memory_mb=600, engine_disk_mb=1500, **ceilings)
    assert isinstance(provision(product, "alice"), Operation)
    assert provision(product, "bob").rule == rule


def test_api_says_that_capacity_is_exhausted(ceiling, api):
    ceiling(host_memory_mb=1)
    answer = api.call("POST", "/engines/provision", {"user_id": "alice"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "CAPACITY_EXHAUSTED")
    assert answer.json()["error"]["details"] == {"rule": "host_memory_mb"}
    assert "512" not in answer.json()["error"]["message"]
    answer = api.call("POST", "/engines/alice/admit", {"auto_provision": True})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "CAPACITY_EXHAUSTED")


@pytest.mark.parametrize(("away", "back"), [(lifecycle.sleep, lifecycle.wake), (lifecycle.stop, lifecycle.start)])
def test_what_does_not_run_leaves_its_room_to_others(ceiling, make_engine, carry_out, away, back):
    ceiling(host_max_engines=1)
    alice = make_engine("alice")
    carry_out(away(alice, by=ACME))
    bob = make_engine("bob")
    with pytest.raises(CapacityExhausted):
        back(alice, by=ACME)
    assert AuditRow.objects.get(action="capacity_exhausted").engine_id == alice.pk
    carry_out(lifecycle.destroy(bob, by=ACME))
    assert carry_out(back(alice, by=ACME)).state == "succeeded"


def test_wake_joins_one_in_flight_although_there_is_no_room_for_another(ceiling, running_engine, carry_out):
    ceiling(host_max_engines=1)
    carry_out(lifecycle.sleep(running_engine, by=ACME))
    first = lifecycle.wake(running_engine, by=ACME)
    assert lifecycle.wake(running_engine, by=ACME).pk == first.pk


def test_an_engine_that_waits_for_its_restart_keeps_its_room(ceiling, product, running_engine, superuser):
    ceiling(host_max_engines=1)
    superuser.execute("UPDATE engines_engine SET status = 'failed', next_restart_at = now()")
    assert isinstance(provision(product, "bob"), CapacityExhausted)
    superuser.execute("UPDATE engines_engine SET next_restart_at = NULL")
    assert isinstance(provision(product, "bob"), Operation)


@pytest.mark.parametrize(
    ("status", "columns"),
    [
        ("running", {}),
        ("provisioning", {}),
        ("destroying", {}),
        ("failed", {"may_run": True}),
        ("failed", {"next_restart_at": Now()}),
    ],
)
def test_what_may_run_holds_its_room(ceiling, product, status, columns):
    ceiling(host_max_engines=1)
    put_engine(product, "alice", status, **columns)
    assert isinstance(provision(product, "bob"), CapacityExhausted)


@pytest.mark.parametrize("status", ["stopped", "sleeping", "failed"])
def test_what_does_not_run_holds_none(ceiling, product, status):
    ceiling(host_max_engines=1)
    put_engine(product, "alice", status)
    assert isinstance(provision(product, "bob"), Operation)


@pytest.mark.parametrize("columns", [{"may_run": True}, {"next_restart_at": Now()}])
def test_start_of_a_failed_engine_takes_the_room_that_it_holds(ceiling, product, columns):
    ceiling(host_max_engines=1, host_memory_mb=512)
    failed = put_engine(product, "alice", "failed", memory_mb=512, **columns)
    assert lifecycle.start(failed, by=ACME).kind == "start"


def test_engine_that_failed_its_probes_holds_its_room_until_it_is_seen_not_to_run(ceiling, product, memory_backend, settings):
    ceiling(host_max_engines=1, health_max_failures=1, restart_max_attempts=0)
    engine = put_engine(product, "alice")
    backends.get().create(Spec(Ref(engine.pk, 1), "acme", "image:1", engine.port))
    backends.get().start(Ref(engine.pk, 1))
    reconcile.host_is_settled()
    loop.judge([probes.Target(engine.pk, engine.seq, engine.port, engine.key_hash)], [probes.Result(False, "timeout")])
    assert Engine.objects.get().gave_up_at is not None
    assert isinstance(provision(product, "bob"), CapacityExhausted)
    reconcile.sweep()
    assert isinstance(provision(product, "bob"), CapacityExhausted)
    memory_backend.unavailable = True
    reconcile.sweep()
    memory_backend.unavailable = False
    assert isinstance(provision(product, "bob"), CapacityExhausted)
    memory_backend.exit(Ref(engine.pk, 1))
    reconcile.sweep()
    assert isinstance(provision(product, "bob"), Operation)


def test_stop_that_failed_leaves_the_room_taken(ceiling, running_engine, product, settings, carry_out):
    """The instance runs on, for all that anybody knows."""
    operation = lifecycle.stop(running_engine, by=ACME)
    Operation.objects.filter(pk=operation.pk).update(attempt=99)
    assert carry_out(operation).error_code == "attempts_exhausted"
    ceiling(host_max_engines=1)
    assert Engine.objects.get().may_run
    assert isinstance(provision(product, "bob"), CapacityExhausted)


# -- memory follows what an instance was made with -------------------------------------------------------------------------------


def test_rotation_takes_the_policys_memory_and_counts_the_larger_until_it_is_done(ceiling, product, make_engine, carry_out):
    products.update_policy(product.pk, {"memory_mb": 100}, by=actors.ADMIN)
    ceiling(host_memory_mb=800)
    engine = make_engine("alice")
    assert engine.memory_mb == 100
    products.update_policy(product.pk, {"memory_mb": 400}, by=actors.ADMIN)
    engine.refresh_from_db()
    rotation = lifecycle.rotate_key(Engine.objects.select_related("product").get(), by=ACME)
    assert (rotation.params["memory_mb"], capacity.decide_room(1, 0)[0].value) == (400, 401)
    assert carry_out(rotation).state == "succeeded"
    assert (Engine.objects.get().memory_mb, capacity.decide_room(1, 0)[0].value) == (400, 401)
    products.update_policy(product.pk, {"memory_mb": 50}, by=actors.ADMIN)
    rotation = lifecycle.rotate_key(Engine.objects.select_related("product").get(), by=ACME)
    assert capacity.decide_room(1, 0)[0].value == 401
    carry_out(rotation)
    assert Engine.objects.get().memory_mb == 50


def test_rotation_keeps_the_memory_that_there_is_where_no_more_fits(ceiling, product, make_engine, carry_out):
    products.update_policy(product.pk, {"memory_mb": 100}, by=actors.ADMIN)
    make_engine("alice")
    products.update_policy(product.pk, {"memory_mb": 400}, by=actors.ADMIN)
    ceiling(host_memory_mb=300)
    carry_out(lifecycle.rotate_key(Engine.objects.select_related("product").get(), by=ACME))
    assert Engine.objects.get().memory_mb == 100


def test_without_a_ceiling_nothing_is_locked(product, django_assert_num_queries):
    with django_assert_num_queries(0):
        capacity.lock_host()
        assert capacity.decide_room(512, 512) == []
