"""Instances made anew: where starting is of no use, and where an instance is not made of what holds now."""

import pytest

from audit import actors
from audit.models import AuditRow
from engines import lifecycle, operations, reconcile, specs
from engines.backends.base import BackendError, BackendUnavailable, DiskFull, Ref, RuntimeMissing, Spec, State
from engines.backends.memory import Behaviour
from engines.models import Engine, Kind, Operation, Status
from policy import environments, products

ACME = actors.product("acme")
STRANGE = "0" * 64  # hash of a key that the registry does not know


@pytest.fixture
def engine(memory_backend, make_engine):
    """A running engine in memory."""
    return make_engine("alice")


@pytest.fixture
def stopped(engine, carry_out):
    carry_out(lifecycle.stop(engine, by=ACME))
    engine.refresh_from_db()
    return engine


def boots(memory_backend, engine):
    """How often the engine's instance was started since it was made."""
    lines = memory_backend.logs(specs.ref_of(Engine.objects.get(pk=engine.pk)), tail=9)
    return sum(line.startswith("started") for line in lines)


def remade(operation):
    """What the operation's last move says of the instance."""
    return AuditRow.objects.filter(operation_id=operation.pk).exclude(to_status=None).latest("id").metadata.get("remade")


@pytest.mark.parametrize("error", [BackendError, RuntimeMissing])
def test_start_that_is_refused_makes_the_instance_anew_at_once(memory_backend, stopped, carry_out, error):
    memory_backend.fail_next("start", error("no"))
    operation = carry_out(lifecycle.start(stopped, by=ACME))
    assert (operation.state, operation.attempt, remade(operation)) == ("succeeded", 1, "refused")
    assert boots(memory_backend, stopped) == 1
    assert memory_backend.volumes == {stopped.pk}
    row = carry_out(lifecycle.restart(stopped, by=ACME))
    assert (remade(row), boots(memory_backend, stopped)) == (None, 2)


def test_start_that_is_refused_again_fails_and_says_both(memory_backend, stopped, carry_out):
    for _ in range(2):
        memory_backend.fail_next("start", BackendError("no"))
    operation = carry_out(lifecycle.start(stopped, by=ACME))
    assert (operation.state, operation.error_code, remade(operation)) == ("failed", "backend_error", "refused")


def test_start_that_a_new_instance_would_not_help_keeps_the_instance(memory_backend, stopped, carry_out):
    memory_backend.fail_next("start", DiskFull("no"))
    operation = carry_out(lifecycle.start(stopped, by=ACME))
    assert (operation.error_code, remade(operation), boots(memory_backend, stopped)) == ("disk_full", None, 1)


def test_provision_that_is_refused_makes_nothing_twice(product, memory_backend, carry_out):
    memory_backend.fail_next("start", BackendError("no"))
    operation = carry_out(lifecycle.provision(product, "bob", by=ACME))
    assert (operation.state, remade(operation)) == ("failed", None)


@pytest.mark.parametrize("verb", ["start", "restart", "auto_restart"])
def test_instance_that_timed_out_is_made_anew_at_the_next_start(settings, memory_backend, engine, carry_out, superuser, verb):
    settings.ENV = settings.ENV.model_copy(update={"boot_timeout_s": 0.3})
    memory_backend.behave([engine.pk], Behaviour(boot_s=30))
    late = carry_out(lifecycle.restart(engine, by=ACME))
    assert (late.error_code, remade(late), boots(memory_backend, engine)) == ("boot_timeout", None, 2)  # the log is kept
    memory_backend.behave([engine.pk], Behaviour())
    engine.refresh_from_db()
    if verb == "auto_restart":
        superuser.execute("UPDATE engines_engine SET next_restart_at = now()")
        operation = carry_out(lifecycle.auto_restart(engine.pk, by=actors.SYSTEM))
    else:
        operation = carry_out(getattr(lifecycle, verb)(engine, by=ACME))
    assert (operation.state, remade(operation), boots(memory_backend, engine)) == ("succeeded", "boot_timeout", 1)
    assert remade(carry_out(lifecycle.restart(engine, by=ACME))) is None


def test_stop_between_does_not_forget_that_the_boot_timed_out(settings, memory_backend, engine, carry_out):
    usual = settings.ENV
    settings.ENV = usual.model_copy(update={"boot_timeout_s": 0.3})
    memory_backend.behave([engine.pk], Behaviour(boot_s=30))
    carry_out(lifecycle.restart(engine, by=ACME))
    memory_backend.behave([engine.pk], Behaviour())
    settings.ENV = usual
    for verb in (lifecycle.stop, lifecycle.start):
        engine.refresh_from_db()
        operation = carry_out(verb(engine, by=ACME))
    assert remade(operation) == "boot_timeout"


def test_instance_that_timed_out_is_made_anew_also_by_a_second_attempt(memory_backend, stopped, carry_out, superuser):
    superuser.execute("UPDATE engines_engine SET boot_timed_out = true")
    memory_backend.fail_next("stop", BackendUnavailable("no answer"))
    operation = carry_out(lifecycle.start(stopped, by=ACME))
    assert operation.returned == 1
    superuser.execute("UPDATE engines_operation SET due_at = now()")
    assert carry_out(operation).state == "succeeded"
    assert (remade(operation), boots(memory_backend, stopped)) == ("boot_timeout", 1)


def test_rotation_that_times_out_says_nothing_of_the_old_instance(settings, memory_backend, engine, carry_out):
    settings.ENV = settings.ENV.model_copy(update={"boot_timeout_s": 0.3})
    operation = lifecycle.rotate_key(engine, by=ACME)
    memory_backend.behave([Ref.parse(engine.pk, operation.mark)], Behaviour(boot_s=30))
    assert carry_out(operation).error_code == "boot_timeout"
    engine.refresh_from_db()
    assert (engine.status, engine.boot_timed_out) == (Status.RUNNING, False)


# -- not made of what holds now ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Kind.START, Kind.WAKE, Kind.RESTART])
def test_instance_that_differs_is_made_anew_at_its_next_start(settings, memory_backend, engine, carry_out, kind):
    if kind != Kind.RESTART:
        carry_out((lifecycle.stop if kind == Kind.START else lifecycle.sleep)(engine, by=ACME))
    settings.ENGINE_ENV = {"PASSED": "on"}
    reconcile.sweep()
    engine.refresh_from_db()
    assert engine.differs == "environment"
    operation = carry_out(getattr(lifecycle, kind.value)(engine, by=ACME))
    assert (operation.state, remade(operation), boots(memory_backend, engine)) == ("succeeded", "differs", 1)
    engine.refresh_from_db()
    assert (engine.differs, engine.incarnation) == ("", 1)
    assert list(Engine.objects.differing()) == []


def test_failed_engine_whose_instance_still_runs_is_made_anew(settings, memory_backend, engine, carry_out, superuser):
    superuser.execute("UPDATE engines_engine SET status = 'failed', may_run = true")
    settings.ENGINE_ENV = {"PASSED": "on"}
    operation = carry_out(lifecycle.start(Engine.objects.get(), by=ACME))
    assert (operation.state, remade(operation)) == ("succeeded", "differs")
    assert [(found.ref, found.state) for found in memory_backend.list()] == [(Ref(engine.pk, 1), State.RUNNING)]


def test_changed_policy_and_new_variables_make_no_difference(memory_backend, engine, carry_out):
    products.update_policy(engine.product_id, {"cpus": 0.5, "pids": 17}, by=actors.ADMIN)
    environments.replace(engine.product_id, {"TOKEN": "two"}, by=actors.ADMIN)
    reconcile.sweep()
    assert list(Engine.objects.differing()) == []
    operation = carry_out(lifecycle.restart(engine, by=ACME))
    assert (remade(operation), boots(memory_backend, engine)) == (None, 2)


def test_row_says_why_also_where_the_attempt_died_in_the_middle(settings, memory_backend, stopped, carry_out, superuser):
    settings.ENGINE_ENV = {"PASSED": "on"}
    memory_backend.fail_next("destroy", BackendUnavailable("died"))
    operation = carry_out(lifecycle.start(stopped, by=ACME))
    memory_backend.destroy(specs.ref_of(stopped))  # as if the attempt had died after this
    superuser.execute("UPDATE engines_operation SET due_at = now()")
    operation = carry_out(operation)
    assert (operation.state, operation.attempt, remade(operation)) == ("succeeded", 2, "differs")


# -- instances that the registry does not know, as after a restore -------------------------------------------------------


@pytest.fixture
def newer(memory_backend, engine):
    """An incarnation of the engine that a restored registry does not know runs in place of the valid one."""
    memory_backend.destroy(specs.ref_of(engine))
    found = Spec(Ref(engine.pk, 2, "abc"), "acme", engine.engine_version, engine.port, {"ENGINE_KEY_HASH": STRANGE})
    memory_backend.create(found)
    memory_backend.start(found.ref)
    return found.ref


def test_rotation_adopts_no_instance_with_its_number_and_removes_it(memory_backend, engine, newer, carry_out):
    operation = carry_out(lifecycle.rotate_key(engine, by=ACME))
    assert operation.state == "succeeded"
    engine.refresh_from_db()
    (found,) = memory_backend.list()
    assert (found.ref, found.state) == (specs.ref_of(engine), State.RUNNING)
    assert (engine.incarnation, found.ref.token != newer.token) == (2, True)
    row = AuditRow.objects.get(action="orphan_removed")
    assert (row.operation_id, row.metadata) == (operation.pk, {"incarnation": 2, "reason": "old_incarnation"})


def test_restart_removes_the_newer_instance_and_succeeds(memory_backend, engine, newer, carry_out):
    operation = carry_out(lifecycle.restart(engine, by=ACME))
    assert (operation.state, operation.attempt) == ("succeeded", 1)
    assert [(found.ref, found.state) for found in memory_backend.list()] == [(Ref(engine.pk, 1), State.RUNNING)]


def test_destroy_lets_an_unknown_instance_end_with_the_usual_grace(settings, memory_backend, engine, newer, carry_out):
    memory_backend.behave([newer], Behaviour(stop_s=0.2))
    operation = carry_out(lifecycle.destroy(engine, by=ACME))
    assert (operation.state, memory_backend.list(), memory_backend.volumes) == ("succeeded", [], frozenset())
    assert {step["step"] for step in operation.steps} >= {"stopping", "removing"}


def test_start_beside_an_instance_that_cannot_be_removed_fails_by_name(memory_backend, stopped, carry_out):
    memory_backend.fail_next("start", BackendError("no"))
    memory_backend.fail_next("destroy", BackendError("in use"))
    operation = carry_out(lifecycle.start(stopped, by=ACME))
    assert (operation.state, operation.error_code) == ("failed", "backend_error")
    assert operations.find_open(stopped) is None
    assert Operation.objects.count() == 3


# -- marks ---------------------------------------------------------------------------------------------------------------


def test_each_rotation_draws_a_mark_of_its_own(engine, carry_out):
    marks = []
    for _ in range(2):
        carry_out(lifecycle.rotate_key(engine, by=ACME))
        engine.refresh_from_db()
        marks.append(engine.mark)
    assert [mark.partition("-")[0] for mark in marks] == ["2", "3"]
    assert all(len(mark.partition("-")[2]) == 12 for mark in marks)


def test_mark_counts_only_with_its_number(engine, superuser):
    """As after a rotation by a worker from before there were marks."""
    superuser.execute("UPDATE engines_engine SET incarnation = 3, incarnations = 3, incarnation_mark = '2-abc'")
    assert specs.ref_of(Engine.objects.get()) == Ref(engine.pk, 3)
