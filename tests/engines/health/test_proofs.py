"""A good answer on an engine's port counts only if it is the engine's own."""

import os
import signal
from datetime import timedelta
from uuid import uuid4

import pytest
from django.core.management import CommandError
from django.db.models.functions import Now

from audit import actors
from audit.models import AuditRow
from engines import admission, health, lifecycle, reconcile, sightings
from engines.admission import Question
from engines.backends.base import BackendError, Ref
from engines.backends.memory import Behaviour
from engines.backends.process import launch
from engines.health import loop, probes
from engines.management.commands import try_runtime
from engines.models import Engine, Operation
from tests import waiting
from tests.conftest import make_running
from tests.engines.backends.runtimes import processes_of
from tests.engines.crew import probe_once
from tests.engines.registry import put_engine
from tests.engines.strangers import OK, body, listening, proving, saying
from tests.staff import log_in

ACME = actors.product("acme")
KEY_HASH = "1" * 64
SECRETIVE = Behaviour(proof="none")  # an engine that knows nothing of proofs


@pytest.fixture(autouse=True)
def _settled_host(db, memory_backend):
    """The runtime is known already: the first look at it would resume engines instead of judging them."""
    reconcile.host_is_settled()


@pytest.fixture
def tune(settings):
    """Change settings of this test."""

    def change(**values):
        settings.ENV = settings.ENV.model_copy(update=values)

    return change


@pytest.fixture
def secretive_engine(memory_backend, request):
    """A healthy engine without proofs."""
    memory_backend.behave(None, SECRETIVE)
    return request.getfixturevalue("running_engine")


def probe(port, *, must_prove=False):
    (result,) = probes.probe_all([probes.Target(uuid4(), 1, port, KEY_HASH, must_prove)])
    return result


def look(engine, times=1):
    """Have the loop probe the engine."""
    for _ in range(times):
        Engine.objects.filter(pk=engine.pk).update(next_probe_at=Now())
        health.probe_due()
    engine.refresh_from_db()


def rows(engine, *names):
    return list(AuditRow.objects.filter(engine_id=engine.pk, action__in=names).order_by("id"))


def checks(engine):
    return [(row.metadata["result"], row.metadata.get("proven")) for row in rows(engine, "health_check")]


def is_admitted(engine):
    return admission.explain(engine.product, Question("admit", engine.user_id)).would == "admit"


# -- a probe -----------------------------------------------------------------------------------------------------------------


def test_probe_finds_the_proof():
    with listening(proving(OK, key_hash=KEY_HASH)) as (port,):
        assert probe(port) == probe(port, must_prove=True) == probes.Result(True, "ok", proven=True)


def test_probe_finds_no_proof():
    with listening(saying(OK)) as (port,):
        assert probe(port) == probes.Result(True, "ok", proven=False)
        assert probe(port, must_prove=True) == probes.Result(False, "no_proof")


def test_probe_finds_another_engines_proof_wrong():
    with listening(proving(OK, key_hash="2" * 64)) as (port,):
        assert probe(port) == probes.Result(False, "wrong_proof")


@pytest.mark.parametrize(
    "headers",
    [["X-Engine-Proof:"], ["X-Engine-Proof: \xff"], [f"X-Engine-Proof: {'0' * 64}"], ["x-engine-proof: 0", "X-Engine-Proof: 1"]],
)
def test_probe_finds_what_is_no_proof_wrong(headers):
    with listening(saying(body(b'{"status": "ok"}', "200 OK", *headers).replace(b"\xc3\xbf", b"\xff"))) as (port,):
        assert probe(port) == probes.Result(False, "wrong_proof")


def test_probe_finds_a_right_proof_beside_a_wrong_one_wrong():
    with listening(proving(body(b'{"status": "ok"}', "200 OK", "X-Engine-Proof: 0"), key_hash=KEY_HASH)) as (port,):
        assert probe(port) == probes.Result(False, "wrong_proof")


def test_probe_finds_a_recorded_proof_wrong():
    heard = []

    async def repeat(head, writer):
        """Answers every probe as the engine has answered the first."""
        heard.append(head)
        await proving(OK, key_hash=KEY_HASH)(heard[0], writer)

    with listening(repeat) as (port,):
        assert probe(port).proven
        assert probe(port) == probes.Result(False, "wrong_proof")


def test_probe_finds_a_bad_answer_bad_whatever_it_proves():
    with listening(proving(body(b'{"status": "starting"}', "503 Busy"), key_hash=KEY_HASH)) as (port,):
        assert probe(port) == probes.Result(False, "status_503")
    with listening(proving(body(b'{"status": "draining"}'), key_hash=KEY_HASH)) as (port,):
        assert probe(port) == probes.Result(False, "not_ok")


def test_probe_follows_no_redirect_to_the_engine():
    with listening(proving(OK, key_hash=KEY_HASH)) as (real,):
        there = body(b'{"status": "ok"}', "307 Elsewhere", f"Location: http://127.0.0.1:{real}/health")
        with listening(saying(there)) as (port,):
            assert probe(port) == probes.Result(False, "status_307")


# -- engines that prove their answers ------------------------------------------------------------------------------------------


def test_answer_with_a_proof_counts_at_once(running_engine):
    look(running_engine)
    assert (running_engine.last_health_ok, running_engine.proves, running_engine.answered_at) == (True, True, None)
    assert checks(running_engine) == [("ok", True)]
    assert rows(running_engine, "provision")[0].metadata["proven"] is True
    page = log_in("rita").get(f"/admin/engines/engine/{running_engine.pk}/change/").text
    assert "<dt>Proves its answers</dt><dd>yes</dd>" in page


def test_stranger_on_the_port_of_an_ended_engine_is_a_failed_probe(memory_backend, running_engine):
    look(running_engine)
    memory_backend.exit(Ref(running_engine.pk, 1))
    with listening(saying(OK), port=running_engine.port):
        look(running_engine)
        assert (running_engine.last_health_ok, running_engine.health_failures) == (False, 1)
        assert checks(running_engine)[-1] == ("no_proof", None)
        look(running_engine, 2)
    assert not is_admitted(running_engine)
    (row,) = rows(running_engine, "health_failed")
    assert (row.metadata["cause"], row.metadata["result"], row.metadata["failures"]) == ("probes", "no_proof", 3)


def test_stranger_on_the_port_of_a_killed_process_does_not_keep_its_engine_running(engine_processes, product, carry_out):
    reconcile.host_is_settled()
    engine = make_running(product, "alice", carry_out)
    assert engine.proves
    for pid in processes_of(engine.pk):
        os.kill(pid, signal.SIGKILL)
    waiting.until(lambda: launch.is_free("127.0.0.1", engine.port))
    with listening(saying(OK), port=engine.port):
        look(engine)
        assert (engine.last_health_ok, checks(engine)) == (False, [("no_proof", None)])
        assert reconcile.sweep() == 1
        Engine.objects.update(next_restart_at=Now())
        assert health.restart_due() == 1
        assert carry_out(Operation.objects.get(finished_at=None)).state == "succeeded"  # on another port
        assert probe_once(Engine.objects.get(pk=engine.pk)).proven
    assert rows(engine, "health_failed")[0].metadata["cause"] == "instance_ended"


def test_engine_that_begins_to_prove_its_answers_owes_the_proof_from_then_on(memory_backend, secretive_engine):
    memory_backend.behave(None, Behaviour())
    look(secretive_engine)
    assert secretive_engine.proves
    memory_backend.behave(None, SECRETIVE)
    look(secretive_engine)
    assert (secretive_engine.last_health_ok, secretive_engine.health_failures) == (False, 1)


def test_engines_with_swapped_ports_fail_and_come_back(make_engine, carry_out, tune):
    tune(restart_backoff_base_s=0.001)
    first, second = make_engine("alice"), make_engine("bob")
    ports = (first.port, second.port)
    for engine, port in ((first, 1), (second, ports[0]), (first, ports[1])):
        Engine.objects.filter(pk=engine.pk).update(port=port)
    look(first)
    assert checks(first) == [("wrong_proof", None)]
    assert reconcile.sweep() == 2
    for engine in (first, second):
        assert rows(engine, "health_failed")[0].metadata["cause"] == "instance_elsewhere"
        engine.refresh_from_db()
        assert (engine.status, engine.may_run) == ("failed", True)
    Engine.objects.update(next_restart_at=Now())
    assert health.restart_due() == 2
    for operation in Operation.objects.filter(finished_at=None):  # each stops its instance before the other takes the port
        carry_out(operation)
    assert {Engine.objects.get(pk=each.pk).status for each in (first, second)} == {"running"}
    assert all(probe_once(Engine.objects.get(pk=each.pk)).proven for each in (first, second))


def test_try_runtime_sends_no_key_to_a_stranger(product):
    heard = []

    async def listen(head, writer):
        heard.append(head)
        await saying(OK)(head, writer)

    with listening(listen) as (port,), pytest.raises(CommandError, match="no_proof"):
        try_runtime._execute(put_engine(product, port=port, proves=True))
    assert len(heard) == 1
    assert b"X-Engine-Key" not in heard[0]


# -- engines that do not -------------------------------------------------------------------------------------------------------


def test_answer_without_a_proof_counts_once_the_runtime_was_listed(secretive_engine):
    assert rows(secretive_engine, "provision")[0].metadata["proven"] is False
    look(secretive_engine)
    noted = secretive_engine.answered_at
    assert (secretive_engine.last_health_ok, secretive_engine.last_health_at, checks(secretive_engine)) == (None, None, [])
    assert reconcile.sweep() == 0
    secretive_engine.refresh_from_db()
    assert (secretive_engine.last_health_ok, secretive_engine.last_health_at) == (True, noted)
    assert (secretive_engine.answered_at, secretive_engine.proves, checks(secretive_engine)) == (None, False, [("ok", False)])


def test_answer_of_a_stranger_without_a_proof_never_counts(memory_backend, secretive_engine):
    memory_backend.exit(Ref(secretive_engine.pk, 1))
    with listening(saying(OK), port=secretive_engine.port):
        look(secretive_engine, 3)
        assert reconcile.sweep() == 1
    secretive_engine.refresh_from_db()
    assert (secretive_engine.status, secretive_engine.last_health_at, checks(secretive_engine)) == ("failed", None, [])
    assert not is_admitted(secretive_engine)


def test_answer_that_is_younger_than_the_list_is_not_confirmed_by_it(memory_backend, secretive_engine):
    watched = sightings.watched()
    found = {secretive_engine.pk: memory_backend.list()}
    look(secretive_engine)
    sightings.confirm(sightings.compare(watched, found))
    secretive_engine.refresh_from_db()
    assert secretive_engine.last_health_at is None


def test_answer_before_a_failed_probe_is_not_confirmed(memory_backend, secretive_engine):
    look(secretive_engine)
    watched = sightings.watched()
    memory_backend.behave(None, Behaviour(status=500))
    look(secretive_engine)
    sightings.confirm(sightings.compare(watched, {secretive_engine.pk: memory_backend.list()}))
    secretive_engine.refresh_from_db()
    assert (secretive_engine.last_health_ok, secretive_engine.health_failures) == (False, 1)


def test_failed_probes_around_a_noted_answer_are_not_in_a_row(memory_backend, secretive_engine):
    for behaviour, failures in (
        (Behaviour(status=500), 1),
        (Behaviour(status=500), 2),
        (SECRETIVE, 2),
        (Behaviour(status=500), 1),
    ):
        memory_backend.behave(None, behaviour)
        look(secretive_engine)
        assert secretive_engine.health_failures == failures


def test_answer_is_not_noted_of_an_engine_that_has_moved_or_is_busy(secretive_engine):
    (target, good) = loop.Target(secretive_engine.pk, secretive_engine.seq - 1, 1, "x"), probes.Result(True, "ok")
    loop.judge([target], [good])
    lifecycle.stop(secretive_engine, by=ACME)
    loop.judge([loop.Target(secretive_engine.pk, secretive_engine.seq, 1, "x")], [good])
    secretive_engine.refresh_from_db()
    assert secretive_engine.answered_at is None


# -- the sweep -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("verb", "cause"), [("exit", "instance_ended"), ("destroy", "instance_missing")])
def test_sweep_fails_an_engine_whose_instance_does_not_run(memory_backend, running_engine, carry_out, tune, verb, cause):
    tune(restart_backoff_base_s=100)
    getattr(memory_backend, verb)(Ref(running_engine.pk, 1))
    assert reconcile.sweep() == 1
    running_engine.refresh_from_db()
    (row,) = rows(running_engine, "health_failed")
    assert (running_engine.status, running_engine.may_run, row.actor) == ("failed", False, "system")
    assert row.metadata == {"cause": cause, "restart_in_s": row.metadata["restart_in_s"]}
    assert 80 <= row.metadata["restart_in_s"] <= 100
    assert reconcile.sweep() == 0
    Engine.objects.update(next_restart_at=Now())
    assert health.restart_due() == 1
    assert carry_out(Operation.objects.get(finished_at=None)).state == "succeeded"


def test_sweep_gives_up_an_engine_that_has_had_all_its_restarts(memory_backend, running_engine, tune):
    tune(restart_max_attempts=3)
    Engine.objects.update(restart_attempts=3)
    memory_backend.exit(Ref(running_engine.pk, 1))
    assert reconcile.sweep() == 1
    assert [row.action for row in rows(running_engine, "health_failed", "auto_restart_gave_up")] == [
        "health_failed",
        "auto_restart_gave_up",
    ]


def test_sweep_leaves_an_ended_engine_to_its_operation(memory_backend, running_engine):
    lifecycle.restart(running_engine, by=ACME, reason="")
    memory_backend.exit(Ref(running_engine.pk, 1))
    assert reconcile.sweep() == 0
    running_engine.refresh_from_db()
    assert running_engine.status == "running"


def test_sweep_leaves_an_engine_alone_that_has_moved_since_the_registry_was_read(memory_backend, running_engine, carry_out):
    watched = sightings.watched()
    found = memory_backend.list()
    carry_out(lifecycle.restart(running_engine, by=ACME, reason=""))
    memory_backend.exit(Ref(running_engine.pk, 1))
    gone = sightings.compare(watched, {running_engine.pk: memory_backend.list()})
    assert set(gone.values()) == {"instance_ended"}
    assert sightings.fail(gone) == 0
    assert set(sightings.compare(watched, {running_engine.pk: found}).values()) == {""}


def test_sweep_counts_nothing_while_the_runtime_does_not_answer(memory_backend, secretive_engine):
    look(secretive_engine)
    memory_backend.exit(Ref(secretive_engine.pk, 1))
    memory_backend.unavailable = True
    assert reconcile.sweep() == 0
    memory_backend.unavailable = False
    memory_backend.fail_next("list", BackendError("a list that cannot be made"))
    assert reconcile.sweep() == 0
    secretive_engine.refresh_from_db()
    assert (secretive_engine.status, secretive_engine.last_health_at) == ("running", None)
    assert secretive_engine.answered_at is not None


def test_sweep_resumes_ended_engines_when_their_host_was_restarted(memory_backend, running_engine):
    memory_backend.exit(Ref(running_engine.pk, 1))
    memory_backend.boot = "second"
    assert reconcile.sweep() == 0
    running_engine.refresh_from_db()
    assert running_engine.status == "running"
    assert Operation.objects.get(finished_at=None).params == {"cause": "host_restarted"}


# -- boots ---------------------------------------------------------------------------------------------------------------------


def test_boot_with_a_wrong_proof_fails(memory_backend, product, carry_out, tune):
    tune(boot_timeout_s=0.4)
    memory_backend.behave(None, Behaviour(proof="wrong"))
    operation = carry_out(lifecycle.provision(product, "alice", by=ACME))
    assert (operation.state, operation.error_code) == ("failed", "boot_timeout")
    assert "wrong_proof" in operation.error_message


@pytest.mark.parametrize("verb", [lifecycle.restart, lifecycle.stop])
def test_boot_of_an_incarnation_that_owes_the_proof_fails_without_it(memory_backend, running_engine, carry_out, tune, verb):
    tune(boot_timeout_s=0.4, restart_backoff_base_s=100)
    memory_backend.behave(None, SECRETIVE)
    operation = carry_out(verb(running_engine, by=ACME, reason=""))
    if verb is lifecycle.stop:
        running_engine.refresh_from_db()
        operation = carry_out(lifecycle.start(running_engine, by=ACME))
    assert (operation.state, operation.error_code) == ("failed", "boot_timeout")
    assert "no_proof" in operation.error_message


def test_rotation_ends_the_duty_to_prove(memory_backend, running_engine, carry_out):
    assert running_engine.proves
    memory_backend.behave(None, SECRETIVE)
    operation = carry_out(lifecycle.rotate_key(running_engine, by=ACME))
    assert operation.state == "succeeded", operation.error_message
    assert AuditRow.objects.get(operation_id=operation.pk).metadata["proven"] is False
    running_engine.refresh_from_db()
    assert not running_engine.proves
    look(running_engine)
    assert (running_engine.health_failures, running_engine.answered_at is None) == (0, False)


def test_rotation_is_proved_by_the_new_key(running_engine, carry_out):
    before = running_engine.key_hash
    operation = carry_out(lifecycle.rotate_key(running_engine, by=ACME))
    assert AuditRow.objects.get(operation_id=operation.pk).metadata["proven"] is True
    running_engine.refresh_from_db()
    assert running_engine.key_hash != before
    assert probe_once(running_engine).proven
    running_engine.key_hash = before
    assert probe_once(running_engine).text == "wrong_proof"


def test_answers_wait_for_the_list_no_longer_than_their_engine_is_as_it_was(secretive_engine, carry_out):
    look(secretive_engine)
    assert secretive_engine.answered_at is not None
    carry_out(lifecycle.restart(secretive_engine, by=ACME, reason=""))
    secretive_engine.refresh_from_db()
    assert secretive_engine.answered_at is None
    assert secretive_engine.next_probe_at - secretive_engine.created_at < timedelta(minutes=1)
