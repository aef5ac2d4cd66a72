"""The runtime is made to agree with the registry."""

from dataclasses import replace

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from audit import actors
from audit.models import AuditRow
from engines import backends, hosts, lifecycle, operations, reconcile
from engines.backends.base import BackendError, BackendUnavailable, Ref, Spec, State
from engines.health import loop, probes
from engines.lifecycle import outcomes
from engines.models import Engine, Operation, Status, Trigger
from policy import environments
from policy.models import EngineEnv
from tests.engines.crew import in_parallel
from tests.engines.registry import put_engine

ACME = actors.product("acme")


def spec(engine, incarnation):
    return Spec(Ref(engine.pk, incarnation), "acme", engine.engine_version, engine.port, {"ENGINE_KEY_HASH": "0" * 64})


def test_sweep_leaves_a_settled_fleet_alone(running_engine):
    assert reconcile.sweep() == 0
    assert backends.get().observe(Ref(running_engine.pk, 1)) == State.RUNNING


def test_sweep_of_many_engines_sends_as_many_queries_as_of_few(running_engine, product):
    def queries():
        with CaptureQueriesContext(connection) as sent:
            assert reconcile.sweep() == 0
        return len(sent)

    few = queries()
    for n in range(20):
        backends.get().create(spec(put_engine(product, f"user-{n}"), 1))
    reconcile.sweep()  # stores that they differ
    assert queries() == few


def test_sweep_removes_what_a_late_worker_made_of_a_destroyed_engine(running_engine, carry_out):
    carry_out(lifecycle.destroy(running_engine, by=ACME))
    late = spec(running_engine, 1)
    backends.get().create(late)
    backends.get().start(late.ref)
    assert reconcile.sweep() == 1
    assert list(backends.get().list()) == []
    row = AuditRow.objects.get(action="orphan_removed")
    assert (row.engine_id, row.metadata) == (running_engine.pk, {"incarnation": 1, "reason": "engine_destroyed"})


def test_sweep_removes_an_incarnation_that_is_not_the_valid_one(running_engine):
    backends.get().create(spec(running_engine, 2))
    assert reconcile.sweep() == 1
    assert [found.ref.incarnation for found in backends.get().list()] == [1]


def test_sweep_stops_through_an_operation_what_should_not_run(running_engine, carry_out):
    carry_out(lifecycle.stop(running_engine, by=ACME))
    backends.get().start(Ref(running_engine.pk, 1))
    assert reconcile.sweep() == 1
    operation = Operation.objects.get(finished_at=None)
    assert carry_out(operation).state == "succeeded"
    assert backends.get().observe(Ref(running_engine.pk, 1)) == State.EXITED
    row = AuditRow.objects.get(operation_id=operation.pk)
    assert (row.action, row.from_status, row.to_status, row.metadata["cause"]) == ("stop", "stopped", "stopped", "reconciled")


def test_sweep_leaves_an_engine_with_an_open_operation_to_it(running_engine):
    backends.get().create(spec(running_engine, 2))
    lifecycle.stop(running_engine, by=ACME)
    assert reconcile.sweep() == 0


def test_sweep_leaves_everything_alone_while_the_backend_does_not_answer(product, memory_backend):
    memory_backend.unavailable = True
    assert reconcile.sweep() == 0


def test_sweep_stores_what_differs_and_forgets_it_with_the_instance(settings, make_engine):
    engines = [make_engine(user_id) for user_id in ("alice", "bob")]
    settings.ENGINE_ENV = {"PASSED": "on"}
    reconcile.sweep()
    assert [found.differs for found in Engine.objects.differing()] == ["environment", "environment"]
    settings.ENGINE_ENV = {}
    backends.get().destroy(Ref(engines[0].pk, 1))
    reconcile.sweep()
    assert list(Engine.objects.differing()) == []


def test_sweep_compares_with_the_variables_of_the_incarnations_version(settings, product, make_engine):
    environments.replace(product.pk, {"TOKEN": "one"}, by=actors.ADMIN)
    make_engine("alice")
    environments.replace(product.pk, {"TOKEN": "two"}, by=actors.ADMIN)
    make_engine("bob")
    reconcile.sweep()
    assert list(Engine.objects.differing()) == []
    EngineEnv.objects.filter(version=2).update(ciphertext="of another master key")
    settings.ENGINE_ENV = {"PASSED": "on"}
    reconcile.sweep()
    assert [found.user_id for found in Engine.objects.differing()] == ["alice"]  # of bob's engine nothing is known


@pytest.fixture
def orphans(product, memory_backend):
    """Two engines, each with an instance of an incarnation that is not the valid one."""
    engines = [put_engine(product, user_id) for user_id in ("alice", "bob")]
    for engine in engines:
        memory_backend.create(spec(engine, 2))
    return engines


def test_sweep_goes_on_when_one_orphan_cannot_be_removed(memory_backend, orphans):
    memory_backend.fail_next("destroy", BackendError("no"))
    assert reconcile.sweep() == 1
    assert len(memory_backend.list()) == 1
    assert reconcile.sweep() == 1
    assert AuditRow.objects.filter(action="orphan_removed").count() == 2


def test_sweep_ends_when_the_runtime_goes_away_in_its_middle(memory_backend, orphans):
    memory_backend.fail_next("destroy", BackendUnavailable("gone"))
    memory_backend.fail_next("identity", BackendUnavailable("gone"))
    assert reconcile.sweep() == 0
    assert len(memory_backend.list()) == 2


def test_sweep_removes_the_volume_that_a_late_worker_made_and_died(product, memory_backend, carry_out):
    engine = lifecycle.provision(product, "alice", by=ACME).engine
    carry_out(lifecycle.destroy(engine, by=ACME))
    put_engine(product, "bob", Status.STOPPED)
    memory_backend.volumes |= {engine.pk, Engine.objects.get(user_id="bob").pk}
    assert reconcile.sweep() == 1
    assert memory_backend.volumes == {Engine.objects.get(user_id="bob").pk}
    row = AuditRow.objects.get(action="orphan_removed")
    assert (row.engine_id, row.metadata) == (engine.pk, {"reason": "engine_destroyed"})


def test_sweep_corrects_instances_although_volumes_cannot_be_listed(running_engine, memory_backend):
    memory_backend.create(spec(running_engine, 2))
    memory_backend.fail_next("list_volumes", BackendError("no"))
    reconcile.sweep()
    assert [found.ref.incarnation for found in memory_backend.list()] == [1]


def test_sweep_goes_on_when_one_volume_cannot_be_removed(product, memory_backend, carry_out):
    engines = [lifecycle.provision(product, user_id, by=ACME).engine for user_id in ("alice", "bob")]
    for engine in engines:
        carry_out(lifecycle.destroy(engine, by=ACME))
        memory_backend.volumes |= {engine.pk}
    memory_backend.fail_next("remove", BackendError("volume is in use"))
    assert reconcile.sweep() == 1
    assert len(memory_backend.volumes) == 1


def test_sweep_opens_no_stop_for_what_was_stopped_since_it_was_listed(product, memory_backend):
    engine = put_engine(product, status=Status.STOPPED)
    memory_backend.create(spec(engine, 1))
    memory_backend.start(Ref(engine.pk, 1))
    listed = memory_backend.list()
    memory_backend.stop(Ref(engine.pk, 1), grace_s=0)
    assert reconcile._reconcile(engine.pk, listed) == 0
    assert not Operation.objects.exists()


@pytest.mark.parametrize(("had", "action"), [(2, "restart_failed"), (8, "auto_restart_gave_up")])
def test_resume_that_fails_is_followed_by_automatic_restarts(product, memory_backend, carry_out, had, action):
    engine = put_engine(product, restart_attempts=had)
    assert reconcile.resume() == 1
    memory_backend.fail_next("create", BackendError("no"))
    assert carry_out(Operation.objects.get()).state == "failed"
    engine.refresh_from_db()
    row = AuditRow.objects.filter(engine_id=engine.pk).latest("id")
    assert (engine.status, row.action) == (Status.FAILED, action)
    if had == 2:
        assert engine.next_restart_at is not None
        assert 16 <= row.metadata["restart_in_s"] <= 20
    else:
        assert (engine.next_restart_at, row.metadata) == (None, {"restarts": 8})
        assert engine.gave_up_at is not None


def test_resume_restarts_what_should_run(make_engine, carry_out):
    running, stopped, up = (make_engine(user_id) for user_id in ("alice", "bob", "carol"))
    carry_out(lifecycle.stop(stopped, by=ACME))
    backends.get().stop(Ref(running.pk, 1), grace_s=1)
    hosts.mark_seen("before it was started again")
    assert reconcile.resume() == 1
    operation = Operation.objects.get(finished_at=None)
    assert carry_out(operation).state == "succeeded"
    row = AuditRow.objects.get(operation_id=operation.pk)
    assert (row.engine_id, row.action, row.actor, row.metadata["cause"]) == (running.pk, "restart", "system", "host_restarted")
    engine = Engine.objects.get(pk=running.pk)
    assert (engine.status, engine.restart_attempts, engine.next_restart_at) == (Status.RUNNING, 0, None)
    assert Engine.objects.get(pk=up.pk).seq == up.seq


@pytest.mark.parametrize("verb", [lifecycle.stop, lifecycle.sleep])
def test_resume_leaves_alone_what_should_not_run(running_engine, carry_out, verb):
    carry_out(verb(running_engine, by=ACME))
    assert reconcile.resume() == 0


def test_host_is_unreachable_while_its_runtime_does_not_answer(product, memory_backend):
    assert not reconcile.host_is_settled()  # seen for the first time
    assert reconcile.host_is_settled()
    memory_backend.unavailable = True
    assert not reconcile.host_is_settled()
    assert [host.name for host in hosts.unreachable()] == ["local"]
    memory_backend.unavailable = False
    assert not reconcile.host_is_settled()
    assert reconcile.host_is_settled()
    assert hosts.unreachable() == []


def test_host_is_unreachable_from_the_first_when_its_runtime_never_answered(product, memory_backend, client):
    memory_backend.unavailable = True
    assert not reconcile.host_is_settled()
    assert client.get("/health").json()["hosts"] == "engines unknown on 1 hosts"
    memory_backend.unavailable = False
    assert not reconcile.host_is_settled()  # seen for the first time
    assert reconcile.host_is_settled()
    assert client.get("/health").json()["hosts"] == "ok"


def test_engines_are_resumed_when_their_host_came_back(product, memory_backend, carry_out):
    reconcile.host_is_settled()
    engine = lifecycle.provision(product, "alice", by=ACME).engine
    settle_running(engine)
    assert reconcile.host_is_settled()
    memory_backend.boot = "second"
    assert not reconcile.host_is_settled()
    restart = Operation.objects.get(engine=engine, finished_at=None)
    assert (restart.kind, restart.params) == ("restart", {"cause": "host_restarted"})


def test_resume_corrects_a_newer_instance_before_it_restarts_the_engine(running_engine, carry_out):
    reconcile.host_is_settled()
    backends.get().destroy(Ref(running_engine.pk, 1))
    newer = replace(spec(running_engine, 2), ref=Ref(running_engine.pk, 2, "abc"))
    backends.get().create(newer)
    backends.get().start(newer.ref)
    reconcile.begin()
    operation = Operation.objects.get(finished_at=None)
    assert operation.params == {"cause": "reconciled"}
    assert backends.get().list() == []
    assert carry_out(operation).state == "succeeded"
    assert [row.action for row in AuditRow.objects.order_by("id")][-2:] == ["orphan_removed", "restart"]


def test_resume_restarts_engines_although_volumes_cannot_be_listed(product, memory_backend):
    put_engine(product)
    memory_backend.fail_next("list_volumes", BackendError("no"))
    assert reconcile.resume() == 1


@pytest.mark.parametrize(("seen", "cause"), [("", "reconciled"), ("now", "reconciled"), ("before", "host_restarted")])
def test_resume_that_fails_is_tried_again_whatever_its_cause(product, memory_backend, carry_out, seen, cause):
    """A host that was never seen is not known to have been started again."""
    hosts.mark_seen({"now": memory_backend.identity()}.get(seen, seen))
    engine = put_engine(product)
    assert reconcile.resume() == 1
    memory_backend.fail_next("create", BackendError("no"))
    assert carry_out(Operation.objects.get(params={"cause": cause})).state == "failed"
    engine.refresh_from_db()
    assert engine.next_restart_at is not None


def test_resume_opens_one_restart_however_many_do_it(product, memory_backend):
    for number in range(5):
        put_engine(product, f"user-{number}")
    assert sum(in_parallel(lambda _: reconcile.resume(), range(6))) == 5
    assert Operation.objects.filter(kind="restart").count() == 5


def test_resume_leaves_alone_what_has_moved_since_it_was_looked_at(product, memory_backend):
    engine = put_engine(product)
    assert lifecycle.resume(engine.pk, engine.seq - 1, by=actors.SYSTEM, trigger=Trigger.HOST_RESTARTED) is None
    lifecycle.stop(engine, by=ACME)
    assert lifecycle.resume(engine.pk, engine.seq, by=actors.SYSTEM, trigger=Trigger.HOST_RESTARTED) is None


def test_host_stays_unsettled_until_all_of_it_could_be_looked_at(product, memory_backend):
    """One look that came to nothing must not leave an engine to its probes, which would call it failed."""
    reconcile.host_is_settled()
    engine = put_engine(product)
    memory_backend.boot = "second"
    memory_backend.fail_next("list", BackendUnavailable("busy after a boot"))
    assert not reconcile.host_is_settled()
    assert not Operation.objects.exists()
    assert not reconcile.host_is_settled()
    assert Operation.objects.get(engine=engine).params == {"cause": "host_restarted"}
    assert reconcile.host_is_settled()


def test_begin_resumes_on_a_host_that_is_known(product, memory_backend):
    reconcile.host_is_settled()
    engine = put_engine(product)
    reconcile.begin()
    assert Operation.objects.get(engine=engine).params == {"cause": "reconciled"}
    assert reconcile.host_is_settled()


def test_start_is_a_warning_only_if_engines_are_resumed(product, memory_backend, caplog):
    def begun():
        caplog.clear()
        reconcile.begin()
        return [(record.levelname, record.msg["event"]) for record in caplog.records if record.name == reconcile.__name__]

    assert begun() == []  # the host is new
    assert begun() == []
    put_engine(product)
    assert begun() == [("WARNING", "engines_resumed")]
    memory_backend.boot = "second"
    assert begun() == [("WARNING", "host_came_back")]


def test_begin_leaves_it_to_the_first_judgement_while_the_backend_does_not_answer(product, memory_backend):
    reconcile.host_is_settled()
    engine = put_engine(product)
    memory_backend.unavailable = True
    reconcile.begin()
    memory_backend.unavailable = False
    loop.judge([probes.Target(engine.pk, engine.seq, engine.port, engine.key_hash)], [probes.Result(False, "connect_error")])
    assert Operation.objects.get(engine=engine).params == {"cause": "host_restarted"}
    engine.refresh_from_db()
    assert (engine.status, engine.health_failures) == (Status.RUNNING, 0)


def test_bad_probes_do_not_count_while_the_runtime_does_not_answer(settings, product, memory_backend):
    settings.ENV = settings.ENV.model_copy(update={"health_max_failures": 1})
    reconcile.host_is_settled()
    engine = settle_running(lifecycle.provision(product, "alice", by=ACME).engine)
    target, bad = probes.Target(engine.pk, engine.seq, engine.port, engine.key_hash), probes.Result(False, "connect_error")
    memory_backend.unavailable = True
    loop.judge([target], [bad])
    engine.refresh_from_db()
    assert (engine.status, engine.health_failures) == (Status.RUNNING, 0)


def settle_running(engine):
    """End the engine's provision as a worker would that found it healthy."""
    operation = engine.operations.get(finished_at=None)
    assert lifecycle.settle(operations.claim(operation.pk), operation, outcomes.succeeded(operation, engine, 1))
    engine.refresh_from_db()
    return engine
