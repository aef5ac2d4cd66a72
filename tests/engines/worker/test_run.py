"""Carrying operations out: what each kind does, what every failure leaves behind. On processes where their data or key counts."""

import socket
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import requests
from django.db import OperationalError, connection
from django.db.models.functions import Now
from django.utils import timezone

from audit import actors
from audit.models import AuditRow
from engines import backends, lifecycle, operations, specs, worker
from engines.addresses import url
from engines.backends.base import BackendError, Ref, State
from engines.backends.memory import Behaviour
from engines.errors import OperationInProgress
from engines.lifecycle import outcomes
from engines.models import Engine, Kind, Operation, Status
from engines.operations import queues
from engines.worker import attempt
from policy import crypto, products
from tests import waiting
from tests.engines.registry import put_engine
from tests.refused_writes import refusing
from tests.staff import log_in

ACME = actors.product("acme")


def rows(engine, **conditions):
    found = AuditRow.objects.filter(engine_id=engine.pk, **conditions).exclude(action="health_check")
    return list(found.order_by("engine_seq", "id").values_list("action", flat=True))


def ask(engine, method, path, body=None, key=None):
    """Call the engine itself, with its key."""
    key = key or crypto.decrypt(Engine.objects.get(pk=engine.pk).key_ciphertext)
    return requests.request(method, url(engine) + path, json=body, headers={"X-Engine-Key": key}, timeout=5)


def observe(engine):
    return backends.get().observe(specs.ref_of(engine))


@pytest.fixture
def faults(settings, engine_processes):
    """Engines booted in this test are processes that can be told to fail."""
    settings.ENGINE_ENV = {"DEMO_FAULTS": "1"}


@pytest.mark.usefixtures("engine_processes")
def test_provision_gives_a_healthy_engine_that_knows_its_key(running_engine):
    assert ask(running_engine, "POST", "/execute", {"input": "hi"}).status_code == 200
    assert ask(running_engine, "POST", "/execute", {"input": "hi"}, key="sk-sept-wrong").status_code == 401
    assert rows(running_engine) == ["provision_requested", "provision"]


def test_digest_of_the_image_is_stored_recorded_and_shown(running_engine, carry_out):
    digest = backends.get().resolve(running_engine.engine_version)
    assert running_engine.image_digest == digest
    assert AuditRow.objects.get(action="provision").metadata["digest"] == digest
    page = log_in("rita").get(f"/admin/engines/engine/{running_engine.pk}/change/").text
    assert f'title="{digest}"' in page


@pytest.mark.usefixtures("engine_processes")
@pytest.mark.parametrize(("away", "back"), [(lifecycle.stop, lifecycle.start), (lifecycle.sleep, lifecycle.wake)])
def test_stop_frees_the_process_and_start_keeps_the_data(running_engine, carry_out, away, back):
    ask(running_engine, "POST", "/execute", {"input": "one"}).raise_for_status()
    carry_out(away(running_engine, by=ACME))
    assert observe(running_engine) == State.EXITED
    carry_out(back(running_engine, by=ACME))
    assert ask(running_engine, "GET", "/counter").json()["counter"] == 1


def test_restart_boots_the_same_incarnation_again(running_engine, carry_out):
    operation = carry_out(lifecycle.restart(running_engine, by=ACME, reason="stuck"))
    engine = Engine.objects.get(pk=running_engine.pk)
    row = AuditRow.objects.get(operation_id=operation.pk)
    assert (row.action, row.from_status, row.to_status, row.metadata["reason"]) == ("restart", "running", "running", "stuck")
    assert (engine.incarnation, engine.seq) == (1, running_engine.seq + 1)


@pytest.mark.usefixtures("engine_processes")
def test_rotate_key_replaces_incarnation_and_key(running_engine, carry_out):
    old_key = crypto.decrypt(running_engine.key_ciphertext)
    ask(running_engine, "POST", "/execute", {"input": "one"}).raise_for_status()
    assert carry_out(lifecycle.rotate_key(running_engine, by=ACME)).state == "succeeded"
    assert ask(running_engine, "GET", "/counter", key=old_key).status_code == 401
    assert ask(running_engine, "GET", "/counter").json()["counter"] == 1
    engine = Engine.objects.get(pk=running_engine.pk)
    assert (engine.incarnation, engine.pending_key_hash, engine.pending_key_ciphertext) == (2, "", "")
    assert [found.ref.incarnation for found in backends.get().list()] == [2]


def test_rotate_key_returns_to_the_old_key_when_the_new_incarnation_fails(faults, product, carry_out, make_engine):
    engine = make_engine("alice")
    old_key = crypto.decrypt(engine.key_ciphertext)
    ask(engine, "POST", "/faults", {"mode": "exit", "boots": 1}).raise_for_status()
    operation = carry_out(lifecycle.rotate_key(engine, by=ACME))
    assert (operation.state, operation.error_code) == ("failed", "engine_exited")
    assert ask(engine, "GET", "/counter", key=old_key).status_code == 200
    after = Engine.objects.get(pk=engine.pk)
    assert (after.status, after.incarnation, after.pending_key_hash) == ("running", 1, "")
    assert rows(engine)[-1] == "rotate_key_failed"
    assert [found.ref.incarnation for found in backends.get().list()] == [1]


def test_rotate_key_fails_the_engine_when_the_old_one_does_not_return_either(memory_backend, carry_out, make_engine):
    engine = make_engine("alice")
    memory_backend.behave([engine.pk], Behaviour(dies_after_s=0))
    assert carry_out(lifecycle.rotate_key(engine, by=ACME)).state == "failed"
    assert Engine.objects.get(pk=engine.pk).status == Status.FAILED
    memory_backend.behave([engine.pk], Behaviour())
    second = carry_out(lifecycle.start(engine, by=ACME))
    assert second.state == "succeeded"


def test_rotate_key_uses_a_number_of_its_own_after_a_failed_one(memory_backend, carry_out, make_engine):
    engine = make_engine("alice")
    memory_backend.fail_next("start", BackendError("no"))
    assert carry_out(lifecycle.rotate_key(engine, by=ACME)).state == "failed"
    carry_out(lifecycle.rotate_key(engine, by=ACME))
    assert Engine.objects.get(pk=engine.pk).incarnation == 3


def test_destroy_leaves_a_tombstone_and_nothing_else(running_engine, carry_out):
    carry_out(lifecycle.destroy(running_engine, by=ACME))
    engine = Engine.objects.get(pk=running_engine.pk)
    assert (engine.status, engine.key_hash, engine.key_ciphertext) == ("destroyed", "", "")
    assert engine.destroyed_at is not None
    assert list(backends.get().list()) == []
    assert rows(engine)[-2:] == ["destroy_requested", "destroy"]


def test_provision_fails_when_the_engine_is_not_healthy_in_time(settings, product, memory_backend, carry_out):
    settings.ENV = settings.ENV.model_copy(update={"boot_timeout_s": 0.8})
    memory_backend.behave(None, Behaviour(boot_s=30))
    operation = carry_out(lifecycle.provision(product, "alice", by=ACME))
    assert (operation.state, operation.error_code) == ("failed", "boot_timeout")
    assert observe(operation.engine) == State.EXITED
    assert rows(operation.engine) == ["provision_requested", "provision_failed"]


@pytest.mark.parametrize(
    ("kind", "status", "verb", "action"),
    [
        (Kind.START, "stopped", "create", "start_failed"),
        (Kind.STOP, "running", "stop", "stop_failed"),
        (Kind.SLEEP, "running", "stop", "sleep_failed"),
        (Kind.WAKE, "sleeping", "create", "wake_failed"),
        (Kind.RESTART, "running", "stop", "restart_failed"),
        (Kind.ROTATE_KEY, "running", "stop", "rotate_key_failed"),
        (Kind.DESTROY, "running", "remove", "destroy_failed"),
    ],
)
def test_failure_for_good_has_a_row_of_its_own(product, memory_backend, carry_out, kind, status, verb, action):
    engine = put_engine(product, status=status)
    memory_backend.fail_next(verb, BackendError("no"))
    operation = carry_out(getattr(lifecycle, kind.value)(engine, by=ACME))
    check_failed(operation, kind, "destroying" if kind == Kind.DESTROY else status, action)


def test_provision_that_fails_for_good_has_a_row_of_its_own(product, memory_backend, carry_out):
    memory_backend.fail_next("create", BackendError("no"))
    operation = carry_out(lifecycle.provision(product, "alice", by=ACME))
    check_failed(operation, Kind.PROVISION, "provisioning", "provision_failed")


def check_failed(operation, kind, status, action):
    """Operation, engine and row say that it failed, and the engine is free for the next operation."""
    assert (operation.kind, operation.state, operation.error_code) == (kind, "failed", "backend_error")
    assert "(no)" in operation.error_message
    row = AuditRow.objects.get(operation_id=operation.pk, to_status="failed")
    assert (row.action, row.from_status, row.actor) == (action, status, "acme")
    assert row.metadata["error"] == "backend_error"
    engine = Engine.objects.get(pk=operation.engine_id)
    assert (engine.status, engine.pending_key_hash, operations.find_open(engine)) == ("failed", "", None)


def test_provision_fails_at_once_for_an_image_that_is_not_there(product, memory_backend, carry_out):
    memory_backend.missing_images |= {"nobody/knows:1"}
    products.update_policy(product.pk, {"images": ["nobody/*"]}, by=actors.ADMIN)
    operation = carry_out(lifecycle.provision(product, "alice", by=ACME, engine_version="nobody/knows:1"))
    assert (operation.state, operation.error_code, operation.attempt) == ("failed", "image_missing", 1)


def test_provision_takes_another_port_when_something_else_has_its_own(product, carry_out):
    operation = lifecycle.provision(product, "alice", by=ACME)
    taken = operation.engine.port
    with socket.create_server(("127.0.0.1", taken)):
        assert carry_out(operation).state == "succeeded"
    engine = Engine.objects.get(pk=operation.engine_id)
    assert engine.port != taken
    assert AuditRow.objects.get(engine_id=engine.pk, action="provision").metadata["port"] == engine.port


def test_provision_makes_again_what_somebody_removed_in_its_middle(product, memory_backend, carry_out, superuser):
    memory_backend.behave(None, Behaviour(boot_s=30))
    operation = lifecycle.provision(product, "alice", by=ACME)
    with ThreadPoolExecutor() as pool:
        attempt = pool.submit(in_a_thread, operation)
        waiting.until(lambda: any(s["step"] == "waiting_for_health" for s in Operation.objects.get(pk=operation.pk).steps))
        memory_backend.destroy(Ref(operation.engine_id, 1))
        attempt.result()
    memory_backend.behave(None, Behaviour())
    operation.refresh_from_db()
    assert (operation.state, operation.returned) == ("running", 1)
    superuser.execute("UPDATE engines_operation SET due_at = now()")
    assert carry_out(operation).state == "succeeded"
    assert rows(operation.engine) == ["provision_requested", "provision"]


def in_a_thread(operation):
    try:
        worker.run(operation.pk)
    finally:
        connection.close()


def test_destroy_supersedes_what_is_open(product, carry_out):
    provision = lifecycle.provision(product, "alice", by=ACME)
    lease = operations.claim(provision.pk)
    destroy = lifecycle.destroy(provision.engine, by=ACME)
    assert lifecycle.destroy(provision.engine, by=ACME).pk == destroy.pk
    with pytest.raises(operations.LeaseLost):
        operations.step(lease, "creating")
    assert carry_out(destroy).state == "succeeded"
    assert rows(provision.engine) == ["provision_requested", "operation_superseded", "destroy_requested", "destroy"]


def test_settle_writes_nothing_without_the_lease(product, carry_out):
    operation = lifecycle.provision(product, "alice", by=ACME)
    lease = operations.claim(operation.pk)
    lifecycle.destroy(operation.engine, by=ACME)
    before = rows(operation.engine)
    assert not lifecycle.settle(lease, operation, outcomes.succeeded(operation, operation.engine, 1))
    assert rows(operation.engine) == before


def test_settle_writes_nothing_once_the_engine_is_destroyed(running_engine, carry_out):
    stop = lifecycle.stop(running_engine, by=ACME)
    lease = operations.claim(stop.pk)
    carry_out(lifecycle.destroy(running_engine, by=ACME))
    before = rows(running_engine)
    assert not lifecycle.settle(lease, stop, outcomes.succeeded(stop, stop.engine, 1))
    stop.refresh_from_db()
    assert (stop.state, rows(running_engine)) == ("superseded", before)


def test_run_claims_an_operation_once(product):
    operation = lifecycle.provision(product, "alice", by=ACME)
    assert operations.claim(operation.pk) is not None
    assert operations.claim(operation.pk) is None
    worker.run(operation.pk)
    operation.refresh_from_db()
    assert (operation.state, operation.attempt) == ("running", 1)


def test_run_gives_up_after_too_many_attempts_died(settings, product, superuser):
    settings.ENV = settings.ENV.model_copy(update={"operation_max_attempts": 2})
    operation = lifecycle.provision(product, "alice", by=ACME)
    for _ in range(2):
        assert operations.claim(operation.pk)
        superuser.execute("UPDATE engines_operation SET lease_until = now() - interval '1 second'")
    worker.run(operation.pk)
    operation.refresh_from_db()
    assert (operation.state, operation.error_code) == ("failed", "attempts_exhausted")
    assert rows(operation.engine) == ["provision_requested", "provision_failed"]


def test_run_gives_the_operation_back_while_the_backend_does_not_answer(product, memory_backend):
    memory_backend.unavailable = True
    operation = lifecycle.provision(product, "alice", by=ACME)
    worker.run(operation.pk)
    operation.refresh_from_db()
    assert (operation.state, operation.returned, operation.lease_until) == ("running", 1, None)
    assert operation.due_at > operation.attempt_started_at
    assert rows(operation.engine) == ["provision_requested"]


def test_run_gives_the_operation_back_when_the_runtime_that_refused_was_started_again(product, memory_backend, carry_out):
    memory_backend.boot = "first"
    assert attempt._last_seen(memory_backend) == "first"
    operation = lifecycle.provision(product, "bob", by=ACME)
    memory_backend.boot = "second"
    memory_backend.fail_next("create", BackendError("shutting down"))
    assert (carry_out(operation).finished_at, operation.returned) == (None, 1)


def test_run_ends_the_operation_when_the_backend_was_away_for_too_long(settings, product, memory_backend, superuser):
    memory_backend.unavailable = True
    operation = lifecycle.provision(product, "alice", by=ACME)
    superuser.execute("UPDATE engines_operation SET created_at = now() - interval '1 hour'")
    worker.run(operation.pk)  # an hour of waiting for its turn is no hour of trying
    operation.refresh_from_db()
    assert operation.is_open
    operation.steps[0]["at"] = (timezone.now() - timedelta(hours=1)).isoformat()
    Operation.objects.update(steps=operation.steps, due_at=Now())
    worker.run(operation.pk)
    operation.refresh_from_db()
    assert (operation.state, operation.error_code) == ("failed", "backend_unavailable")


def test_renew_extends_only_the_leases_that_hold(product, superuser):
    operation = lifecycle.provision(product, "alice", by=ACME)
    lease = operations.claim(operation.pk)
    superuser.execute("UPDATE engines_operation SET lease_until = now() + interval '1 second'")
    operations.renew([lease])
    operation.refresh_from_db()
    renewed = operation.lease_until
    superuser.execute("UPDATE engines_operation SET attempt = 7")
    operations.renew([lease])
    operation.refresh_from_db()
    assert operation.lease_until == renewed
    superuser.execute("UPDATE engines_operation SET attempt = 1, lease_until = NULL")
    operations.renew([lease])
    operation.refresh_from_db()
    assert operation.lease_until is None  # given back between the renewer's look and its write
    assert (renewed - operation.attempt_started_at).total_seconds() > 10


def test_dispatch_sends_what_nobody_claimed(product, superuser):
    operation = lifecycle.provision(product, "alice", by=ACME)
    assert queues.dispatch() == 0
    superuser.execute("UPDATE engines_operation SET sent_at = now() - interval '11 seconds'")
    assert queues.dispatch() == 1
    assert queues.dispatch() == 0
    operations.claim(operation.pk)
    superuser.execute("UPDATE engines_operation SET sent_at = now() - interval '11 seconds'")
    assert queues.dispatch() == 0
    superuser.execute("UPDATE engines_operation SET lease_until = now() - interval '1 second'")
    assert queues.dispatch() == 1


def test_attempt_cut_short_by_the_database_is_given_back_and_does_not_count(product, superuser, settings):
    settings.ENV = settings.ENV.model_copy(update={"lease_renew_s": 0.1})
    operation = lifecycle.provision(product, "alice", by=ACME)
    with refusing(superuser, "engines_operation", "25006", on="UPDATE", when="NEW.attempt = OLD.attempt"):
        worker.run(operation.pk)
        operation.refresh_from_db()
        assert (operation.state, operation.attempt, operation.returned) == ("running", 1, 0)
    waiting.until(lambda: Operation.objects.get().returned == 1, 20, "the operation is given back")
    worker.run(operation.pk)
    operation.refresh_from_db()
    assert (operation.state, operation.attempt, operation.returned) == ("succeeded", 2, 1)


def test_attempt_cut_short_by_the_database_counts_when_the_time_for_tries_is_over(product, superuser, settings):
    settings.ENV = settings.ENV.model_copy(update={"operation_give_up_s": 0.0})
    operation = lifecycle.provision(product, "alice", by=ACME)
    operations.release(operations.claim(operation.pk), delay_s=0)
    cut = refusing(superuser, "engines_operation", "25006", on="UPDATE", when="NEW.attempt = OLD.attempt")
    with cut, pytest.raises(OperationalError):
        worker.run(operation.pk)


def test_open_joins_the_same_and_refuses_another(running_engine):
    stop = lifecycle.stop(running_engine, by=ACME)
    assert lifecycle.stop(running_engine, by=ACME).pk == stop.pk
    with pytest.raises(OperationInProgress):
        lifecycle.rotate_key(running_engine, by=ACME)
    assert lifecycle.find(running_engine.product, "alice").operations.filter(kind=Kind.STOP).count() == 1
