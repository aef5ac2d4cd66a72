"""The host's ceilings, which count starts in flight."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from django.db import connections

from audit import actors
from audit.models import AuditRow
from engines import hosts, lifecycle
from engines.errors import CapacityExhausted
from engines.models import Engine, Operation
from tests import floods

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
    finally:
        connections.close_all()


def test_provision_counts_starts_in_flight(ceiling, product):
    ceiling(host_max_engines=5)
    with ThreadPoolExecutor(50) as pool:
        outcomes = list(pool.map(lambda n: provision(product, f"user-{n}"), range(50)))
    assert sum(isinstance(outcome, Operation) for outcome in outcomes) == 5
    assert Engine.objects.count() == 5
    assert floods.written() == 1
    rest, first = AuditRow.objects.filter(action="capacity_exhausted")
    assert first.metadata == {"verb": "provision", "rule": "host_max_engines", "limit": 5, "value": 6}
    assert rest.metadata["count"] == 44


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
    assert answer.json()["error"]["details"] == {"rule": "host_memory_mb", "limit": 1, "value": 512}
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


def test_without_a_ceiling_nothing_is_locked(product, django_assert_num_queries):
    with django_assert_num_queries(0):
        hosts.check_room(512, 512)
