"""The health loop: which engines are probed, what results come to, and how a failed engine is brought back."""

import itertools
import threading
from contextlib import contextmanager
from datetime import timedelta

import pytest
from django.db import transaction
from django.db.models.functions import Now
from django.utils import timezone

from audit import actors
from audit.models import AuditRow
from common.times import database_now
from engines import health, lifecycle, operations, reconcile
from engines.backends.base import Ref
from engines.backends.memory import Behaviour
from engines.health import loop, probes
from engines.lifecycle import backoff
from engines.models import Engine, Kind, Operation, Status
from tests import waiting
from tests.engines.crew import in_parallel, probe_once
from tests.engines.registry import put_engine, put_engines, put_operation
from tests.engines.strangers import OK, listening, proving, saying

GOOD = probes.Result(True, "ok", proven=True)
BAD = probes.Result(False, "timeout")


@pytest.fixture(autouse=True)
def _settled_host(db):
    """The runtime is known already: the first look at it would resume engines instead of judging them."""
    reconcile.host_is_settled()


@pytest.fixture
def tune(settings):
    """Change settings of this test."""

    def change(**values):
        settings.ENV = settings.ENV.model_copy(update=values)

    return change


@pytest.fixture
def engine(product):
    """A running engine that was never probed."""
    return put_engine(product, next_probe_at=timezone.now())


def find(engine, result):
    """One probe that found this."""
    seen = Engine.objects.get(pk=engine.pk)
    loop.judge([probes.Target(seen.pk, seen.seq, seen.port, seen.key_hash)], [result])
    engine.refresh_from_db()


def rows(engine, *, probes=False):
    found = AuditRow.objects.filter(engine_id=engine.pk).order_by("engine_seq", "id")
    return list(found if probes else found.exclude(action="health_check"))


def actions(engine):
    return [row.action for row in rows(engine)]


# -- who is probed -----------------------------------------------------------------------------------------------------------


def test_claim_takes_running_engines_that_are_due(product):
    due = put_engine(product, "due", next_probe_at=timezone.now())
    put_engine(product, "later", next_probe_at=timezone.now() + timedelta(seconds=5))
    put_engine(product, "never")
    for status in ("provisioning", "sleeping", "stopped", "failed", "destroying"):
        put_engine(product, status, status, next_probe_at=timezone.now())
    put_operation(put_engine(product, "busy", next_probe_at=timezone.now()), Kind.STOP)
    assert loop.claim(database_now()) == [probes.Target(due.pk, due.seq, due.port, due.key_hash)]
    assert loop.claim(database_now()) == []


def test_claim_puts_the_next_probe_an_interval_away(engine, tune):
    tune(health_check_interval_s=100)
    began = timezone.now()
    loop.claim(began)
    engine.refresh_from_db()
    assert 89 < (engine.next_probe_at - began).total_seconds() < 112


def test_claims_at_once_never_take_an_engine_twice(product, tune):
    tune(health_check_interval_s=3600)  # none is due a second time, however slow the machine
    put_engines(product, range(30000, 31500))

    def claim_all(_):
        return list(itertools.chain.from_iterable(iter(lambda: loop.claim(database_now()), [])))

    claimed = list(itertools.chain.from_iterable(in_parallel(claim_all, range(8))))
    assert len(claimed) == len({target.engine_id for target in claimed}) == 1500


def test_engine_whose_row_is_locked_for_a_moment_is_probed_by_the_same_call(product):
    with listening(proving(OK), 2) as ports:
        put_engines(product, ports)
        held, over = threading.Event(), threading.Event()

        def hold(_):
            with transaction.atomic():
                product.engines.locked().get(port=ports[0])
                held.set()
                over.wait(loop.STEP_S / 5)

        holder = threading.Thread(target=in_parallel, args=(hold, [None]))
        holder.start()
        held.wait()
        assert health.probe_due() == 2
        over.set()
        holder.join()
    assert product.engines.filter(last_health_ok=True).count() == 2


def test_call_ends_although_engines_are_due_again(product, tune):
    tune(health_check_interval_s=0.001)
    with listening(proving(OK)) as ports:
        put_engines(product, ports)
        assert health.probe_due() == 1


# -- what a result counts for --------------------------------------------------------------------------------------------------


def test_failures_are_counted_and_a_success_ends_the_count(engine):
    for failures in (1, 2):
        find(engine, BAD)
        assert (engine.status, engine.health_failures, engine.last_health_ok) == ("running", failures, False)
    assert engine.last_health_at is None
    find(engine, GOOD)
    assert (engine.health_failures, engine.last_health_ok) == (0, True)
    assert engine.last_health_at is not None
    find(engine, BAD)
    assert engine.health_failures == 1


def test_engine_fails_after_as_many_failures_as_set(engine, tune):
    tune(health_max_failures=3, restart_backoff_base_s=100)
    for _ in range(3):
        assert engine.status == Status.RUNNING
        find(engine, BAD)
    assert engine.status == Status.FAILED
    (row,) = rows(engine)
    assert (row.action, row.actor, row.from_status, row.to_status) == ("health_failed", "system", "running", "failed")
    assert (row.metadata["result"], row.metadata["failures"]) == ("timeout", 3)
    assert 80 <= row.metadata["restart_in_s"] <= 100
    assert 75 < (engine.next_restart_at - timezone.now()).total_seconds() <= 100
    find(engine, BAD)
    assert len(rows(engine)) == 1


@pytest.mark.parametrize("result", [GOOD, BAD])
def test_result_of_an_earlier_state_does_not_count(engine, tune, result):
    tune(health_max_failures=1)
    (target,) = loop.claim(database_now())
    Engine.objects.filter(pk=engine.pk).update(seq=engine.seq + 1)
    loop.judge([target], [result])
    engine.refresh_from_db()
    assert (engine.status, engine.last_health_ok, engine.health_failures) == ("running", None, 0)
    assert rows(engine, probes=True) == []


@pytest.mark.parametrize("result", [GOOD, BAD])
def test_result_does_not_count_once_an_operation_is_open(engine, tune, result):
    tune(health_max_failures=1)
    (target,) = loop.claim(database_now())
    lifecycle.stop(engine, by=actors.SYSTEM)
    loop.judge([target], [result])
    engine.refresh_from_db()
    assert (engine.status, engine.last_health_ok) == ("running", None)


def test_results_at_once_fail_an_engine_once(engine, tune):
    tune(health_max_failures=1)
    target = probes.Target(engine.pk, engine.seq, engine.port, engine.key_hash)
    in_parallel(lambda _: loop.judge([target], [BAD]), range(8))
    assert actions(engine) == ["health_failed"]


@pytest.mark.parametrize("has_place", [True, False])
def test_silent_engine_holds_up_nobody_while_there_is_a_place_for_its_late_result(product, tune, has_place):
    tune(health_check_timeout_s=2.5)
    with listening(proving(OK), 2) as good, listening(saying(b"", pause_s=60)) as silent:
        put_engines(product, [*good, *silent])
        with taken(0 if has_place else loop.PLACES):
            since = waiting.now()
            assert health.probe_due() == 3
            assert waiting.passed(since, 2.4) is not has_place
        assert product.engines.filter(last_health_ok=True).count() == 2
        failed = product.engines.filter(port=silent[0], health_failures=1, last_health_ok=False)
        waiting.until(failed.exists)
    assert AuditRow.objects.get(user_id=failed.get().user_id).metadata["result"] == "timeout"


def test_engine_that_answers_slowly_is_judged_while_a_silent_one_is_waited_for(product, settings):
    with listening(proving(b"", OK, pause_s=1.5)) as slow, listening(saying(b"", pause_s=60)) as silent:
        put_engines(product, [*slow, *silent])
        assert health.probe_due() == 2
        good = product.engines.filter(port=slow[0], last_health_ok=True)
        assert not good.exists()
        waiting.until(good.exists, settings.ENV.health_check_timeout_s / 2)
        assert product.engines.filter(port=silent[0], health_failures=0).exists()


@contextmanager
def taken(count):
    """So many places for late results are taken by other chunks."""
    for _ in range(count):
        loop._places.acquire()
    try:
        yield
    finally:
        for _ in range(count):
            loop._places.release()


# -- sampled rows --------------------------------------------------------------------------------------------------------------


def test_probe_rows_are_the_first_and_every_change(engine, tune):
    tune(health_max_failures=9)
    for result in (GOOD, GOOD, GOOD, BAD, BAD, GOOD, GOOD):
        find(engine, result)
    sampled = rows(engine, probes=True)
    assert [(row.action, row.metadata["healthy"], row.metadata["result"]) for row in sampled] == [
        ("health_check", True, "ok"),
        ("health_check", False, "timeout"),
        ("health_check", True, "ok"),
    ]
    assert {(row.retention, row.from_status, row.to_status, row.actor) for row in sampled} == {("probe", None, None, "system")}


def test_probe_rows_come_once_an_hour_without_a_change(engine):
    find(engine, GOOD)
    Engine.objects.filter(pk=engine.pk).update(health_row_at=Now() - timedelta(minutes=59))
    find(engine, GOOD)
    assert len(rows(engine, probes=True)) == 1
    Engine.objects.filter(pk=engine.pk).update(health_row_at=Now() - timedelta(minutes=61))
    find(engine, GOOD)
    find(engine, GOOD)
    assert len(rows(engine, probes=True)) == 2


# -- restarts ------------------------------------------------------------------------------------------------------------------


def test_backoff_doubles_up_to_the_cap_with_jitter(tune):
    tune(restart_backoff_base_s=5, restart_backoff_max_s=300, restart_max_attempts=8)
    for attempts, longest in enumerate([5, 10, 20, 40, 80, 160, 300, 300]):
        delays = [backoff.next_restart_s(attempts) for _ in range(200)]
        assert 0.8 * longest <= min(delays) < 0.85 * longest
        assert 0.95 * longest < max(delays) <= longest
    assert backoff.next_restart_s(8) is None


def test_restart_is_not_opened_before_its_time(product):
    engine = put_engine(product, status="failed", next_restart_at=timezone.now() + timedelta(seconds=5))
    assert health.restart_due() == 0
    assert lifecycle.auto_restart(engine.pk, by=actors.SYSTEM) is None
    Engine.objects.update(next_restart_at=Now())
    assert health.restart_due() == 1
    assert health.restart_due() == 0


def test_restarts_at_once_open_one_operation(product):
    for number in range(5):
        put_engine(product, f"user-{number}", status="failed", next_restart_at=timezone.now())
    assert sum(in_parallel(lambda _: health.restart_due(), range(6))) == 5
    assert Operation.objects.count() == AuditRow.objects.filter(action="auto_restart_start").count() == 5


def test_restart_is_not_opened_beside_another_operation(product):
    put_operation(put_engine(product, status="failed", next_restart_at=timezone.now()), Kind.START)
    assert health.restart_due() == 0


def test_destroy_and_a_start_by_hand_cancel_the_scheduled_restart(product):
    engine = put_engine(product, status="failed", next_restart_at=timezone.now())
    lifecycle.destroy(engine, by=actors.SYSTEM)
    engine.refresh_from_db()
    assert engine.next_restart_at is None
    assert health.restart_due() == 0


def probe(engine, times=1):
    """Have the loop probe the engine."""
    for _ in range(times):
        Engine.objects.filter(pk=engine.pk).update(next_probe_at=Now())
        health.probe_due()
    engine.refresh_from_db()


def restart(engine, carry_out):
    """Carry out the scheduled restart now."""
    Engine.objects.filter(pk=engine.pk).update(next_restart_at=Now())
    assert health.restart_due() == 1
    operation = carry_out(Operation.objects.get(engine=engine, finished_at=None))
    engine.refresh_from_db()
    return operation


def test_crashed_engine_is_restarted(memory_backend, running_engine, carry_out):
    faulty = running_engine
    probe(faulty)
    memory_backend.exit(Ref(faulty.pk, 1))
    probe(faulty, times=3)
    assert (faulty.status, faulty.health_failures) == ("failed", 3)
    assert restart(faulty, carry_out).state == "succeeded"
    assert (faulty.status, faulty.health_failures, faulty.restart_attempts, faulty.next_restart_at) == ("running", 0, 1, None)
    assert probe_once(faulty).ok
    failed, began, done = rows(faulty)[-3:]
    assert [failed.action, began.action, done.action] == ["health_failed", "auto_restart_start", "auto_restart_success"]
    assert {row.actor for row in (failed, began, done)} == {"system"}
    assert (began.metadata, began.to_status) == ({"restart": 1}, None)
    assert (done.from_status, done.to_status, done.metadata["restart"]) == ("failed", "running", 1)
    assert done.operation_id == began.operation_id
    assert done.duration_ms > 0


def test_hanging_engine_is_restarted(memory_backend, running_engine, carry_out, tune):
    faulty = running_engine
    tune(health_check_timeout_s=0.3, stop_grace_s=1)
    memory_backend.behave([faulty.pk], Behaviour(hangs=True))
    probe(faulty, times=3)
    assert rows(faulty)[-1].metadata["result"] == "timeout"
    memory_backend.behave([faulty.pk], Behaviour())
    restart(faulty, carry_out)
    assert probe_once(faulty).ok


def test_engine_that_does_not_come_back_is_given_up(memory_backend, running_engine, carry_out, tune):
    faulty = running_engine
    tune(restart_max_attempts=2, restart_backoff_base_s=100, restart_backoff_max_s=1000)
    memory_backend.behave([faulty.pk], Behaviour(dies_after_s=0))
    probe(faulty, times=3)
    assert restart(faulty, carry_out).state == "failed"
    assert faulty.status == "failed"
    assert 155 < (faulty.next_restart_at - timezone.now()).total_seconds() <= 200  # base x 2
    assert restart(faulty, carry_out).state == "failed"
    assert faulty.next_restart_at is None
    assert faulty.gave_up_at is not None
    assert health.restart_due() == 0
    last = rows(faulty)[-6:]
    assert [row.action.removeprefix("auto_restart_") for row in last] == [
        "health_failed", "start", "failed", "start", "failed", "gave_up",
    ]  # fmt: skip
    assert 160 <= last[2].metadata["restart_in_s"] <= 200
    assert last[2].metadata["error"] == "engine_exited"
    assert "restart_in_s" not in last[4].metadata
    assert last[5].metadata == {"restarts": 2}


def test_start_by_hand_ends_giving_up(product, running_engine, carry_out):
    Engine.objects.filter(pk=running_engine.pk).update(status="failed", restart_attempts=8, gave_up_at=Now())
    carry_out(lifecycle.start(running_engine, by=actors.product("acme")))
    running_engine.refresh_from_db()
    assert (running_engine.status, running_engine.restart_attempts, running_engine.gave_up_at) == ("running", 0, None)


def test_engine_that_had_all_its_restarts_is_given_up_at_once(engine, tune):
    tune(health_max_failures=1, restart_max_attempts=3)
    Engine.objects.filter(pk=engine.pk).update(restart_attempts=3)
    find(engine, BAD)
    assert (engine.status, engine.next_restart_at) == ("failed", None)
    assert actions(engine) == ["health_failed", "auto_restart_gave_up"]


def test_restart_attempts_count_from_zero_once_healthy_for_long(engine, tune):
    tune(restart_reset_s=600, health_max_failures=9)
    Engine.objects.filter(pk=engine.pk).update(restart_attempts=4)
    find(engine, GOOD)
    assert engine.restart_attempts == 4
    Engine.objects.filter(pk=engine.pk).update(healthy_since=Now() - timedelta(seconds=590))
    find(engine, GOOD)
    assert engine.restart_attempts == 4
    find(engine, BAD)
    assert engine.healthy_since is None
    find(engine, GOOD)
    Engine.objects.filter(pk=engine.pk).update(healthy_since=Now() - timedelta(seconds=601))
    find(engine, GOOD)
    assert engine.restart_attempts == 0


def test_fresh_restart_counts_from_when_it_was_healthy_again(memory_backend, running_engine, carry_out):
    faulty = running_engine
    memory_backend.exit(Ref(faulty.pk, 1))
    probe(faulty, times=3)
    restart(faulty, carry_out)
    assert (faulty.restart_attempts, faulty.healthy_since, faulty.last_health_ok) == (1, None, None)
    probe(faulty)
    assert faulty.healthy_since is not None


def test_engine_with_an_operation_is_left_alone_by_the_loop(engine):
    operation = lifecycle.stop(engine, by=actors.SYSTEM)
    assert health.probe_due() == 0
    operations.supersede(operation)
    assert health.probe_due() == 1
