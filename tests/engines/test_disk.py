"""Volumes that take more than they may: what is measured, written, shown, refused and stopped."""

from datetime import timedelta

import pytest
from django.db import transaction
from django.db.models import F
from django.db.models.functions import Now

from audit import actors
from audit.models import AuditRow
from common.times import database_now
from engines import admission, disk, hosts, lifecycle, reconcile
from engines.admission import Question
from engines.backends.base import BackendError, BackendUnavailable, Usage
from engines.health import loop
from engines.models import Engine, Host, Operation, Status
from policy import overrides, products
from policy.errors import DiskExceeded
from tests.engines.crew import in_parallel
from tests.engines.registry import put_engine
from tests.envelopes import assert_error

ACME = actors.product("acme")
REFUSAL = {"rule": "disk_mb", "limit": 1024, "value": 1600}
STOP = {"cause": "disk", "reason": "disk: the volume takes 2100 MB of 1024 MB"}


def sweep(memory_backend, used):
    """A sweep in which every volume is due, and takes so many MB; in `used` by user."""
    by_user = dict(Engine.objects.living().values_list("user_id", "pk"))
    memory_backend.usage = {by_user[user_id]: used_mb for user_id, used_mb in used.items()}
    Engine.objects.update(disk_due_at=None)
    return disk.sweep()


def rows(*actions):
    found = AuditRow.objects.filter(action__in=actions).order_by("id")
    return [(row.action, row.actor, row.user_id, row.metadata) for row in found]


def raise_limit(product, disk_mb):
    return overrides.grant(product.pk, "disk_mb", disk_mb, reason="clean up", expires_in_s=60, by=actors.ADMIN)


def open_stop():
    (operation,) = Operation.objects.open()
    return operation.kind, operation.params


# -- above the limit ---------------------------------------------------------------------------------------------------


def test_sweep_warns_once_and_lets_nothing_start_until_the_limit_is_raised(
    api, product, running_engine, carry_out, memory_backend
):
    for _ in range(2):
        assert sweep(memory_backend, {"alice": 1600}) == 1
    crossing = ("disk_exceeded", "system", "alice", {"used_mb": 1600, "limit_mb": 1024})
    assert rows("disk_exceeded") == [crossing]
    shown = api.call("GET", "/engines/alice").json()["disk"]
    measured_at = shown.pop("measured_at")
    assert shown == {"used_mb": 1600, "limit_mb": 1024, "exceeded": True}
    assert api.call("GET", "/engines").json()["engines"][0]["disk"] == {**shown, "measured_at": measured_at}
    assert api.call("POST", "/engines/alice/admit").json()["admitted"]  # still served
    carry_out(lifecycle.stop(running_engine, by=ACME))
    error = assert_error(api.call("POST", "/engines/alice/start"), 403, "DISK_EXCEEDED")
    assert (error["message"], error["details"]) == (str(DiskExceeded(**REFUSAL)), REFUSAL)
    assert rows("start_denied") == [("start_denied", "acme", "alice", {"verb": "start", **REFUSAL})]
    override = raise_limit(product, 1600)
    assert carry_out(lifecycle.start(running_engine, by=ACME)).state == "succeeded"
    sweep(memory_backend, {"alice": 1600})
    assert rows("disk_reduced") == [("disk_reduced", "system", "alice", {"used_mb": 1600, "limit_mb": 1600})]
    overrides.end(product.pk, override.pk, by=actors.ADMIN)
    sweep(memory_backend, {"alice": 1600})
    assert rows("disk_exceeded") == [crossing, crossing]


@pytest.mark.parametrize(
    ("status", "verb"),
    [
        (Status.STOPPED, lifecycle.start), (Status.SLEEPING, lifecycle.wake), (Status.SLEEPING, lifecycle.start),
        (Status.FAILED, lifecycle.start), (Status.FAILED, lifecycle.restart), (Status.RUNNING, lifecycle.restart),
    ],
)  # fmt: skip
def test_verb_that_starts_is_refused_above_the_limit(product, status, verb):
    engine = put_engine(product, status=status, disk_used_mb=1025)
    with pytest.raises(DiskExceeded):
        verb(engine, by=ACME)
    Engine.objects.update(disk_used_mb=1024)
    assert verb(engine, by=ACME).is_open


@pytest.mark.parametrize("verb", [lifecycle.rotate_key, lifecycle.stop, lifecycle.sleep, lifecycle.destroy])
def test_verb_that_starts_nothing_is_allowed_above_the_limit(product, verb):
    assert verb(put_engine(product, disk_used_mb=1600), by=ACME).is_open


def test_state_of_the_engine_is_told_before_its_disk(api, product):
    put_engine(product, disk_used_mb=1600)
    assert_error(api.call("POST", "/engines/alice/start"), 409, "ENGINE_ALREADY_RUNNING")


def test_admit_wakes_nothing_above_the_limit_and_explain_says_so(api, product):
    engine = put_engine(product, status=Status.SLEEPING, disk_used_mb=1600)
    assert_error(api.call("POST", "/engines/alice/admit", {"auto_wake": True}), 403, "DISK_EXCEEDED")
    for question in (Question("admit", "alice", auto_wake=True), Question("start", "alice")):
        explained = admission.explain(product, question)
        decided = {decision.rule: decision for decision in explained.decisions}["disk_mb"]
        assert (decided.allowed, decided.limit, decided.value, decided.headroom) == (False, 1024, 1600, 0)
        assert (explained.would, type(explained.refusal)) == ("refuse", DiskExceeded)
    Engine.objects.filter(pk=engine.pk).update(disk_used_mb=1000)
    explained = admission.explain(product, Question("start", "alice"))
    assert (explained.would, {each.rule: each.headroom for each in explained.decisions}["disk_mb"]) == ("start", 24)


def test_policy_replaces_the_setting_and_counts_in_the_ceiling(settings, product, memory_backend):
    products.update_policy(product.pk, {"disk_mb": 3000}, by=actors.ADMIN)
    product.refresh_from_db()
    settings.ENV = settings.ENV.model_copy(update={"host_disk_mb": 6500})
    first = lifecycle.provision(product, "alice", by=ACME).engine
    assert first.disk_mb == 3000
    lifecycle.provision(product, "bob", by=ACME)
    Engine.objects.filter(user_id="bob").update(status=Status.STOPPED)
    sweep(memory_backend, {"alice": 10, "bob": 3501})  # more than counted: the room is gone all the same
    Engine.objects.get(user_id="bob", disk_exceeded_at__isnull=False)
    decided = {decision.rule: decision for decision in lifecycle.decide_room(1, 1)}["host_disk_mb"]
    assert (decided.allowed, decided.value) == (False, 6502)
    products.update_policy(product.pk, {}, by=actors.ADMIN)
    sweep(memory_backend, {"alice": 10, "bob": 10})
    assert set(Engine.objects.values_list("disk_mb", flat=True)) == {1024}


# -- above twice the limit ---------------------------------------------------------------------------------------------


def test_sweep_stops_what_takes_twice_its_limit(running_engine, carry_out, memory_backend):
    sweep(memory_backend, {"alice": 2048})
    assert not Operation.objects.open().exists()
    sweep(memory_backend, {"alice": 2100})
    assert open_stop() == ("stop", STOP)
    sweep(memory_backend, {"alice": 2100})
    assert carry_out(Operation.objects.open().get()).state == "succeeded"
    assert rows("stop") == [("stop", "system", "alice", {"attempt": 1, **STOP})]
    sweep(memory_backend, {"alice": 2100})
    assert not Operation.objects.open().exists()
    running_engine.refresh_from_db()
    assert running_engine.status == Status.STOPPED


@pytest.mark.parametrize(("columns", "is_stopped"), [({"may_run": True}, True), ({}, False)])
def test_sweep_stops_a_failed_engine_that_may_still_write(product, memory_backend, columns, is_stopped):
    put_engine(product, status=Status.FAILED, **columns)
    sweep(memory_backend, {"alice": 2100})
    assert Operation.objects.open().exists() == is_stopped


# -- no way around -----------------------------------------------------------------------------------------------------


def test_automatic_restart_becomes_a_stop_above_the_limit(product, memory_backend, carry_out):
    hosts.mark_seen(memory_backend.identity())
    put_engine(product, status=Status.FAILED, disk_used_mb=1600, next_restart_at=Now())
    reconcile.begin()
    assert loop.restart_due() == 1
    assert not AuditRow.objects.filter(action="auto_restart_start").exists()
    carry_out(Operation.objects.open().get())
    (row,) = rows("stop")
    assert (row[1], row[3]["reason"]) == ("system", "disk: the volume takes 1600 MB of 1024 MB")
    engine = Engine.objects.get()
    assert (engine.status, engine.next_restart_at) == (Status.STOPPED, None)


def test_resume_after_the_host_was_away_becomes_a_stop_above_the_limit(product, memory_backend):
    put_engine(product, disk_used_mb=1600)
    put_engine(product, "bob", disk_used_mb=1000)
    assert reconcile.resume() == 2
    opened = {operation.engine.user_id: operation.kind for operation in Operation.objects.open()}
    assert opened == {"alice": "stop", "bob": "restart"}


# -- what is measured, and when ----------------------------------------------------------------------------------------


def test_sweep_measures_running_engines_more_often(product, memory_backend):
    put_engine(product)
    put_engine(product, "bob", Status.STOPPED)
    assert disk.sweep() == 2
    assert disk.sweep() == 0
    Engine.objects.update(disk_due_at=F("disk_due_at") - timedelta(seconds=61))
    assert disk.sweep() == 1
    assert Engine.objects.get(user_id="bob").disk_due_at - database_now() > timedelta(minutes=50)


def test_volume_is_measured_again_after_each_boot_and_stop(running_engine, carry_out, memory_backend):
    assert disk.sweep() == 1
    carry_out(lifecycle.stop(running_engine, by=ACME))
    assert disk.sweep() == 1


def test_volume_of_an_engine_that_moved_meanwhile_is_measured_again(product, memory_backend):
    engine = put_engine(product)
    usage = memory_backend.measure([engine.pk], budget_s=1)
    assert disk._note(usage, {engine.pk: engine.seq - 1}) == 1
    assert Engine.objects.get().disk_due_at is None


def test_sweep_leaves_a_locked_engine_for_the_next_one(product, memory_backend):
    put_engine(product)
    with transaction.atomic():
        Engine.objects.locked().get()
        assert in_parallel(lambda _: disk.sweep(), [0]) == [0]
    assert disk.sweep() == 1


def test_part_of_a_volume_never_says_that_it_is_within_its_limit_again(product, memory_backend):
    engine = put_engine(product)
    sweep(memory_backend, {"alice": 1600})
    memory_backend.usage = Usage({engine.pk: 900}, at_least=frozenset({engine.pk}))
    Engine.objects.update(disk_due_at=None)
    disk.sweep()
    engine.refresh_from_db()
    assert (engine.disk_used_mb, rows("disk_reduced")) == (1600, [])
    memory_backend.usage = Usage({engine.pk: 2100}, at_least=frozenset({engine.pk}))
    Engine.objects.update(disk_due_at=None)
    disk.sweep()
    assert open_stop() == ("stop", STOP)


def test_sweep_goes_on_past_a_volume_that_cannot_be_measured(product, memory_backend):
    for user_id in ("alice", "bob", "carol"):
        put_engine(product, user_id)
    for _ in range(2):  # all three, then the half with the first
        memory_backend.fail_next("measure", BackendError("no"))
    assert disk.sweep() == 2
    assert Engine.objects.filter(disk_measured_at=None, disk_due_at__gt=Now()).count() == 1


def test_sweep_leaves_everything_due_while_the_runtime_does_not_answer(product, memory_backend):
    put_engine(product)
    memory_backend.fail_next("measure", BackendUnavailable("away"))
    assert disk.sweep() == 0
    assert Engine.objects.filter(disk_due_at=None).count() == 1


# -- the host's disk ---------------------------------------------------------------------------------------------------


def test_health_says_that_the_disk_is_low(client, db, memory_backend, caplog):
    for share, told in ((0.5, "ok"), (0.09, "low"), (0.5, "ok")):
        memory_backend.usage = Usage({}, total_mb=1000, free_mb=90, free_share=share)
        Host.objects.update(disk_measured_at=None)
        caplog.clear()
        disk.sweep()
        answer = client.get("/health")
        assert (answer.status_code, answer.json()["disk"]) == (200, told)
        assert any("host_disk_low" in record.getMessage() for record in caplog.records) == (told == "low")
    host = Host.objects.get()
    assert (host.disk_mb, host.disk_free_mb, host.disk_low_since) == (1000, 90, None)
