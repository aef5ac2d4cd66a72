"""`admit`: every answer it can give, what it does on the way, and what it costs."""

import importlib
import threading
from datetime import timedelta

import pytest
from django.db import connection
from django.db.models.functions import Now
from django.test.utils import CaptureQueriesContext

from audit import actors
from audit.models import AuditRow
from common import valkey
from engines import admission, lifecycle, operations
from engines.lifecycle import outcomes
from engines.models import Engine, Kind, Operation, Status
from tests import waiting
from tests.conftest import Api, make_product
from tests.engines import crew
from tests.engines.registry import put_engine, put_operation
from tests.envelopes import assert_error

ACME = actors.product("acme")
BOTH = {"auto_provision": True, "auto_wake": True}


def admit(api, **flags):
    return api.call("POST", "/engines/alice/admit", flags or None)


def refused(response):
    """The reason of a refusal for the engine's state."""
    assert response.status_code == 200, response.content
    body = response.json()
    assert body.keys() == {"admitted", "engine", "reason"}
    assert (body["admitted"], body["engine"]) == (False, None)
    return body["reason"]


def admitted(response):
    assert response.status_code == 200, response.content
    body = response.json()
    assert body.keys() == {"admitted", "engine"}
    assert body["admitted"] is True
    assert body["engine"]["status"] == "running"
    return body["engine"]


# -- reasons -----------------------------------------------------------------------------------------------------------------


def test_admit_refuses_a_user_without_engine(api):
    assert refused(admit(api)) == "engine_not_found"
    assert refused(admit(api, auto_wake=True)) == "engine_not_found"
    assert not Engine.objects.exists()


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (Status.PROVISIONING, "engine_provisioning"),
        (Status.SLEEPING, "engine_sleeping"),
        (Status.STOPPED, "engine_stopped"),
        (Status.FAILED, "engine_unhealthy"),
        (Status.DESTROYING, "engine_destroying"),
    ],
)
def test_admit_refuses_an_engine_that_does_not_run(api, product, status, reason):
    put_engine(product, status=status)
    assert refused(admit(api)) == reason


@pytest.mark.parametrize("status", [Status.STOPPED, Status.FAILED, Status.DESTROYING])
def test_admit_never_starts_what_was_stopped_or_failed(api, product, status):
    engine = put_engine(product, status=status)
    assert refused(admit(api, **BOTH)) == admission.REASONS[status]
    assert not Operation.objects.exists()
    engine.refresh_from_db()
    assert engine.status == status


@pytest.mark.parametrize("kind", [Kind.STOP, Kind.ROTATE_KEY, Kind.RESTART])
@pytest.mark.parametrize("flags", [{}, BOTH])
def test_admit_refuses_an_engine_whose_url_is_about_to_die(api, product, kind, flags):
    put_operation(put_engine(product), kind)
    assert refused(admit(api, **flags)) == "engine_busy"


def test_admit_gives_a_running_engine_with_its_key(api, product):
    engine = put_engine(product)
    assert admitted(admit(api)) == api.call("GET", "/engines/alice").json()
    assert admitted(admit(api, **BOTH))["engine_id"] == str(engine.pk)


def test_admit_after_a_destroy_finds_nothing(api, product):
    put_engine(product, status="destroyed", destroyed_at="2026-01-01T00:00:00Z", key_hash="", key_ciphertext="")
    assert refused(admit(api)) == "engine_not_found"


# -- auto_provision ----------------------------------------------------------------------------------------------------------


def test_auto_provision_gives_a_new_user_an_engine(api, product):
    with crew.at_work():
        engine = admitted(admit(api, auto_provision=True))
    rows = AuditRow.objects.filter(engine_id=engine["engine_id"]).order_by("engine_seq")
    assert [(row.action, row.actor) for row in rows] == [("provision_requested", "acme"), ("provision", "acme")]
    assert rows[0].metadata["auto"] is True


def test_auto_provision_joins_a_provision_of_any_image(api, product):
    product.policy = {"images": ["*"]}
    product.save()
    lifecycle.provision(product, "alice", by=ACME, engine_version="roundhouse-demo-engine:2")
    with crew.at_work():
        assert admitted(admit(api, auto_provision=True))["engine_version"] == "roundhouse-demo-engine:2"
    assert Operation.objects.count() == 1


def test_auto_provision_that_fails_is_told(api, product, memory_backend, settings):
    memory_backend.missing_images |= {settings.ENV.engine_image}
    with crew.at_work():
        error = assert_error(admit(api, auto_provision=True), 502, "BACKEND_ERROR")
    assert error["details"]["cause"] == "image_missing"
    assert refused(admit(api, auto_provision=True)) == "engine_unhealthy"


def test_admits_at_once_give_one_engine_whenever_they_come(db):
    """Some look before the engine is there, some while it boots, some when it runs: all are admitted, to the same engine."""
    product = make_product()
    with crew.at_work():
        found = crew.in_parallel(lambda _: admission.admit(product, "alice", **BOTH), range(50), threads=8)
    assert {type(result) for result in found} == {admission.Admission}, found
    assert {result.reason for result in found} <= {"", "engine_provisioning"}, found
    assert len({result.engine.pk for result in found}) == 1
    assert Engine.objects.count() == Operation.objects.count() == 1


def test_admit_beyond_its_products_share_of_threads_is_waited_for(api, product, other_product):
    threads = importlib.import_module("engines.admission.admit")._threads  # `admission.admit` is the function
    taken = iter(lambda: threads.take(product.pk), False)
    count = len(list(taken))
    with crew.at_work(1):
        assert admitted(admit(Api(other_product.key), auto_provision=True))
        assert admitted(admit(api, auto_provision=True))
    for _ in range(count):
        threads.give_back(product.pk)


# -- auto_wake ---------------------------------------------------------------------------------------------------------------


def test_auto_wake_wakes_a_sleeping_engine(api, running_engine, carry_out):
    carry_out(lifecycle.sleep(running_engine, by=actors.SYSTEM))
    assert refused(admit(api)) == "engine_sleeping"
    with crew.at_work():
        assert admitted(admit(api, auto_wake=True))["engine_id"] == str(running_engine.pk)
    row = AuditRow.objects.get(action="wake")
    assert (row.actor, row.from_status, row.to_status) == ("acme", "sleeping", "running")


@pytest.mark.parametrize("verb", [lifecycle.wake, lifecycle.start])
def test_auto_wake_joins_what_brings_the_engine_up_already(api, running_engine, carry_out, verb):
    carry_out(lifecycle.sleep(running_engine, by=actors.SYSTEM))
    verb(running_engine, by=actors.staff("sam"), reason="by hand")
    with crew.at_work():
        admitted(admit(api, auto_wake=True))
    assert Operation.objects.count() == 3  # provision, sleep, and the one that was joined


def test_auto_wake_does_not_wake_what_is_being_stopped(api, product):
    put_operation(put_engine(product, status=Status.SLEEPING), Kind.STOP)
    assert refused(admit(api, auto_wake=True)) in ("engine_sleeping", "engine_busy")
    assert Operation.objects.count() == 1


def test_admits_at_once_wake_once(product, running_engine, carry_out):
    carry_out(lifecycle.sleep(running_engine, by=actors.SYSTEM))
    with crew.at_work():
        found = crew.in_parallel(lambda _: admission.admit(product, "alice", **BOTH), range(30), threads=8)
    assert {type(result) for result in found} == {admission.Admission}, found
    assert {result.reason for result in found} <= {"", "engine_sleeping"}, found
    assert AuditRow.objects.filter(action="wake").count() == 1


# -- sleep -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [{}, {"auto_wake": True}])
def test_admit_cancels_a_sleep_that_nobody_has_claimed(api, product, flags):
    sleep = lifecycle.sleep(put_engine(product), by=actors.SYSTEM)
    admitted(admit(api, **flags))
    sleep.refresh_from_db()
    assert sleep.state == "superseded"
    row = AuditRow.objects.get(action="operation_superseded")
    assert (row.actor, row.operation_id, row.metadata) == ("acme", sleep.pk, {"kind": "sleep", "superseded_by": "admit"})


def test_worker_that_comes_late_leaves_a_cancelled_sleep_alone(api, running_engine, carry_out):
    sleep = lifecycle.sleep(running_engine, by=actors.SYSTEM)
    admitted(admit(api))
    assert carry_out(sleep).state == "superseded"
    admitted(admit(api))


def test_admit_does_not_cancel_a_sleep_that_is_claimed(api, product):
    sleep = lifecycle.sleep(put_engine(product), by=actors.SYSTEM)
    operations.claim(sleep.pk)
    assert refused(admit(api)) == "engine_busy"
    sleep.refresh_from_db()
    assert sleep.state == "running"


def test_auto_wake_wakes_after_a_sleep_that_is_claimed(api, running_engine):
    sleep = lifecycle.sleep(running_engine, by=actors.SYSTEM)
    lease = operations.claim(sleep.pk)

    def finish_sleep():
        waiting.until(is_waited_for, what="the admit waits for the sleep")
        assert lifecycle.settle(lease, sleep, outcomes.succeeded(sleep, running_engine, 1))
        connection.close()

    worker = threading.Thread(target=finish_sleep)
    worker.start()
    with crew.at_work():
        admitted(admit(api, auto_wake=True))
    worker.join()
    actions = AuditRow.objects.filter(engine_id=running_engine.pk).order_by("engine_seq").values_list("action", flat=True)
    assert list(actions) == ["provision_requested", "provision", "sleep", "wake"]


def is_waited_for():
    return valkey.client().pubsub_channels("operation:*")


# -- cost --------------------------------------------------------------------------------------------------------------------


def test_admit_costs_two_reads_and_no_write_in_the_steady_state(api, product):
    put_engine(product)
    admit(api)
    for flags in ({}, BOTH):
        with CaptureQueriesContext(connection) as queries:
            admitted(admit(api, **flags))
        assert [query["sql"].split()[0] for query in queries] == ["SELECT", "SELECT"], [query["sql"] for query in queries]


def test_admit_marks_the_engine_active_once_in_thirty_seconds(api, product):
    engine = put_engine(product)

    def admit_after(seconds):
        Engine.objects.filter(pk=engine.pk).update(last_active_at=Now() - timedelta(seconds=seconds))
        before = Engine.objects.get(pk=engine.pk).last_active_at
        admitted(admit(api))
        return Engine.objects.get(pk=engine.pk).last_active_at > before

    admitted(admit(api))
    assert Engine.objects.get(pk=engine.pk).last_active_at is not None
    assert not admit_after(0)
    assert not admit_after(28)
    assert admit_after(31)


def test_refused_admit_marks_nothing(api, product):
    put_engine(product, status=Status.SLEEPING)
    refused(admit(api))
    assert Engine.objects.get().last_active_at is None


# -- with and without the framework --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [b"", b"{}", b'{"auto_wake": true, "auto_provision": false}'])
def test_admit_answers_the_same_with_and_without_the_framework(product, api, body):
    product.policy = {"rate_limit_rpm": 100}
    product.save()
    put_engine(product, "ünïcödé")

    def ask(**headers):
        path = "/engines/%C3%BCn%C3%AFc%C3%B6d%C3%A9/admit"
        answer = api.generic("POST", path, body, "application/json", headers={"X-Request-ID": "one", **headers})
        limits = {"RateLimit-Remaining": "", "RateLimit-Reset": "", "X-Call-ID": ""}
        return (
            answer.status_code,
            answer.content,
            {**answer.headers, **limits, "Allow": sorted(answer.headers["Allow"].split(", "))},
        )

    assert ask() == ask(Prefer="respond-async") == ask(**{"Idempotency-Key": "one"})


@pytest.mark.parametrize(
    "body", [b"{", b"[]", b"null", b'{"auto_wake": 1}', b'{"more": true}', b"\xff", b"\xef\xbb\xbf{}", b'"' + b"x" * 2000 + b'"']
)
def test_admit_counts_nothing_that_it_cannot_read(product, api, body):
    product.policy = {"rate_limit_rpm": 100}
    product.save()
    put_engine(product)
    answer = api.generic("POST", "/engines/alice/admit", body, "application/json")
    assert_error(answer, 400, "INVALID_REQUEST")
    assert "RateLimit-Limit" not in answer.headers
    assert admit_headers(api)["RateLimit-Remaining"] == "99"


def admit_headers(api):
    return api.call("POST", "/engines/alice/admit").headers
