"""Engines that the runtime has and the registry does not: noted, adopted with their data, or removed at a person's word."""

import itertools
from dataclasses import replace
from uuid import uuid4

import pytest
from django.core.management import call_command

from audit import actors
from audit.models import AuditRow
from common import context
from common.context import Call
from engines import backends, lifecycle, reconcile, unregistered
from engines.backends.base import BackendError, BackendUnavailable, Owner, Ref, Spec, State
from engines.errors import EngineAlreadyExists
from engines.models import Engine, Operation, Status, UnregisteredEngine
from engines.unregistered import NotUnregistered, OwnerUnknown, RemovalAsked
from policy import products
from policy.errors import QuotaExceeded
from policy.models import Product
from tests.conftest import empty, make_product

RITA = actors.staff("rita")
IMAGE = "roundhouse-demo-engine:latest"
PORTS = itertools.count(31000)


def make_unknown(user_id="alice", *, product="acme", runs=True, image=IMAGE, incarnation=1):
    """An engine that only the runtime has, found by a sweep."""
    spec = Spec(Ref(uuid4(), incarnation), product, image, next(PORTS), {"ENGINE_KEY_HASH": "0" * 64}, user_id=user_id)
    backend = backends.get()
    backend.create(spec)
    if runs:
        backend.start(spec.ref)
    reconcile.sweep()
    return spec.ref.engine_id


def rows(engine_id):
    return list(AuditRow.objects.filter(engine_id=engine_id).order_by("id").values_list("action", flat=True))


@pytest.fixture
def registry_lost(running_engine):
    """The id of a running engine that the registry has lost, with its rows, as after a restore."""
    engine_id = running_engine.pk
    empty()
    make_product()
    return engine_id


def test_sweep_notes_what_is_not_registered_and_removes_nothing(product, memory_backend):
    engine_id = make_unknown()
    assert reconcile.sweep() == 0
    found = UnregisteredEngine.objects.get()
    assert (found.pk, found.product_slug, found.user_id, found.image) == (engine_id, "acme", "alice", IMAGE)
    assert (found.incarnation, found.has_volume, found.runs, found.asked_at) == (1, True, True, None)
    assert memory_backend.observe(Ref(engine_id, 1)) is State.RUNNING
    assert rows(engine_id) == []


def test_sweep_forgets_its_note_when_the_runtime_has_the_engine_no_more(product, memory_backend):
    memory_backend.remove(make_unknown())
    reconcile.sweep()
    assert not UnregisteredEngine.objects.exists()


def test_note_of_a_volume_alone_knows_its_owner(product, memory_backend):
    engine_id = make_unknown(runs=False)
    memory_backend.destroy(Ref(engine_id, 1))
    reconcile.sweep()
    found = UnregisteredEngine.objects.get()
    assert (found.user_id, found.incarnation, found.image, found.has_volume) == ("alice", 0, "", True)


@pytest.mark.parametrize("owner", [Owner("Acme!", "\n", "../x"), Owner("system", "..", ""), Owner()])
def test_note_takes_a_label_outside_its_grammar_for_none(product, owner):
    unregistered.note({}, {uuid4(): owner})
    found = UnregisteredEngine.objects.get()
    assert (found.product_slug, found.user_id, found.image) == ("", "", "")


def test_adopted_engine_runs_again_with_its_data_and_a_key_that_it_takes(registry_lost, carry_out):
    (before,) = backends.get().list()
    reconcile.sweep()
    adopted = unregistered.adopt(registry_lost, by=RITA, reason="restored")
    assert (adopted.engine.pk, adopted.engine.status) == (registry_lost, Status.STOPPED)
    assert carry_out(adopted.start).state == "succeeded"
    engine = Engine.objects.get()
    (now,) = backends.get().list()
    assert (engine.status, engine.user_id, now.state) == (Status.RUNNING, "alice", State.RUNNING)
    assert now.made_of["key"] != before.made_of["key"]
    assert set(backends.get().list_volumes()) == {registry_lost}
    assert rows(registry_lost) == ["engine_adopted", "orphan_removed", "start"]
    row = AuditRow.objects.get(action="engine_adopted")
    assert (row.actor, row.from_status, row.to_status, row.engine_seq) == (RITA, None, "stopped", 1)
    assert row.metadata["reason"] == "restored"
    assert row.metadata["runs"] is True
    assert not UnregisteredEngine.objects.exists()
    call_command("audit_check")


def test_adopted_engine_that_does_not_run_stays_stopped(product, memory_backend, carry_out):
    engine_id = make_unknown(runs=False)
    adopted = unregistered.adopt(engine_id, by=RITA)
    assert (adopted.start, adopted.engine.status, adopted.engine.engine_version) == (None, Status.STOPPED, IMAGE)
    assert reconcile.sweep() == 1  # the old instance
    assert set(memory_backend.list_volumes()) == {engine_id}
    assert carry_out(lifecycle.start(adopted.engine, by=RITA)).state == "succeeded"
    call_command("audit_check")


def test_incarnation_of_an_adopted_engine_is_one_that_the_runtime_has_not_had(product, memory_backend):
    engine = unregistered.adopt(make_unknown(incarnation=7), by=RITA).engine
    assert (engine.incarnation, engine.incarnations) == (8, 8)
    assert engine.mark.startswith("8-")


def test_number_of_an_incarnation_that_no_column_takes_is_no_end_of_the_sweep(product, memory_backend):
    engine_id = make_unknown(runs=False, incarnation=10**12)
    assert unregistered.adopt(engine_id, by=RITA).engine.incarnation == 2**31 - 1


def test_adopt_needs_the_owner_that_the_runtime_does_not_know(product, memory_backend):
    engine_id = uuid4()
    memory_backend.volumes |= {engine_id}
    reconcile.sweep()
    for given in ({}, {"product_slug": "acme"}, {"user_id": "alice"}):
        with pytest.raises(OwnerUnknown, match="name the"):
            unregistered.adopt(engine_id, by=RITA, **given)
    with pytest.raises(OwnerUnknown, match="register it first"):
        unregistered.adopt(engine_id, by=RITA, product_slug="nobody", user_id="alice")
    assert unregistered.adopt(engine_id, by=RITA, product_slug="acme", user_id="alice").engine.pk == engine_id


def test_adopt_refuses_another_owner_than_the_labels_say(product, other_product, memory_backend):
    engine_id = make_unknown()
    for given in ({"product_slug": "other"}, {"user_id": "bob"}):
        with pytest.raises(OwnerUnknown, match="leave the"):
            unregistered.adopt(engine_id, by=RITA, **given)


def test_adopt_keeps_one_living_engine_per_user_and_the_quota(running_engine):
    same_user, further_user = make_unknown("alice"), make_unknown("bob")
    with pytest.raises(EngineAlreadyExists):
        unregistered.adopt(same_user, by=RITA)
    products.update_policy(running_engine.product_id, {"max_engines": 1}, by=RITA)
    with pytest.raises(QuotaExceeded):
        unregistered.adopt(further_user, by=RITA)
    assert UnregisteredEngine.objects.count() == 2
    assert Engine.objects.count() == 1


def test_adopt_of_a_suspended_products_engine_leaves_it_stopped_and_says_why(product, memory_backend):
    engine_id = make_unknown()
    products.suspend(product.pk, "unpaid", by=RITA)
    adopted = unregistered.adopt(engine_id, by=RITA)
    assert adopted.start is None
    assert "suspended" in str(adopted.refusal)
    assert rows(engine_id) == ["engine_adopted", "start_denied"]


def test_adopt_refuses_an_engine_that_is_registered_or_absent(running_engine):
    for engine_id in (running_engine.pk, uuid4()):
        with pytest.raises(NotUnregistered):
            unregistered.adopt(engine_id, by=RITA)


def test_forgotten_engine_is_removed_with_its_data_and_leaves_a_row(product, memory_backend):
    engine_id = make_unknown()
    asked = Call(uuid4(), request_id="r-1", client_ip="192.0.2.7", user_agent="Browser")
    with context.of_call(asked):
        unregistered.forget(engine_id, by=RITA, reason="a test")
    assert memory_backend.list_volumes()  # the wish is stored first
    assert unregistered.remove_forgotten() == 1
    assert (memory_backend.list_volumes(), memory_backend.list()) == ({}, [])
    row = AuditRow.objects.get(engine_id=engine_id)
    assert (row.action, row.actor, row.product_id, row.user_id) == ("engine_forgotten", RITA, product.pk, "alice")
    assert row.metadata == {"volume": True, "runs": True, "reason": "a test"}
    assert (row.call_id, row.request_id, str(row.client_ip)) == (asked.call_id, "r-1", "192.0.2.7")
    assert unregistered.remove_forgotten() == 0
    call_command("audit_check")


def test_forget_works_without_a_product_and_a_user(product, memory_backend):
    engine_id = uuid4()
    memory_backend.volumes |= {engine_id}
    reconcile.sweep()
    unregistered.forget(engine_id, by=RITA)
    assert unregistered.remove_forgotten() == 1
    assert AuditRow.objects.get(engine_id=engine_id).product_slug is None
    call_command("audit_check")


def test_removal_that_was_interrupted_is_done_by_the_next_run(product, memory_backend):
    engine_id = make_unknown()
    unregistered.forget(engine_id, by=RITA)
    memory_backend.fail_next("remove", BackendUnavailable("away"))
    with pytest.raises(BackendUnavailable):
        unregistered.remove_forgotten()
    memory_backend.fail_next("remove", BackendError("in use"))
    assert unregistered.remove_forgotten() == 0
    memory_backend.remove(engine_id)  # as by a worker that died before the row
    reconcile.sweep()
    assert unregistered.remove_forgotten() == 1
    assert rows(engine_id) == ["engine_forgotten"]


def test_engine_whose_removal_was_asked_for_is_not_adopted_nor_asked_for_again(product, memory_backend):
    engine_id = make_unknown()
    unregistered.forget(engine_id, by=RITA)
    with pytest.raises(RemovalAsked):
        unregistered.adopt(engine_id, by=RITA)
    with pytest.raises(RemovalAsked):
        unregistered.forget(engine_id, by=RITA)


def test_removal_leaves_an_engine_alone_that_is_registered_again(registry_lost):
    reconcile.sweep()
    unregistered.forget(registry_lost, by=RITA)
    found = UnregisteredEngine.objects.get()
    lifecycle.adopt(Product.objects.get(), lifecycle.Adoptee(found.pk, found.user_id, "", 1, False), by=RITA)  # a newer backup
    assert unregistered.remove_forgotten() == 0
    reconcile.sweep()
    assert set(backends.get().list_volumes()) == {registry_lost}
    assert not UnregisteredEngine.objects.exists()  # the wish is void


def test_provision_says_that_there_is_data_of_its_user(product, memory_backend, carry_out):
    old = make_unknown("alice")
    make_unknown("bob")
    operation = carry_out(lifecycle.provision(product, "alice", by=actors.product("acme")))
    assert operation.params == {"unregistered": [str(old)]}
    assert AuditRow.objects.get(action="provision").metadata["unregistered"] == [str(old)]
    assert Operation.objects.get().state == "succeeded"


def test_provision_says_nothing_of_other_users_and_products(product, other_product, memory_backend, carry_out):
    make_unknown("bob")
    make_unknown("alice", product="other")
    operation = carry_out(lifecycle.provision(product, "alice", by=actors.product("acme")))
    assert operation.params == {}
    assert "unregistered" not in AuditRow.objects.get(action="provision").metadata


def test_failed_provision_says_that_there_is_data_of_its_user(product, memory_backend, carry_out):
    old = make_unknown("alice")
    memory_backend.fail_next("create", BackendError("no"))
    assert carry_out(lifecycle.provision(product, "alice", by=actors.product("acme"))).state == "failed"
    assert AuditRow.objects.get(action="provision_failed").metadata["unregistered"] == [str(old)]


def test_engine_without_its_volume_is_noted_and_its_restart_says_so(running_engine, memory_backend, carry_out):
    memory_backend.remove(running_engine.pk)
    reconcile.sweep()
    running_engine.refresh_from_db()
    assert running_engine.differs == "volume"
    assert list(Engine.objects.differing()) == []
    assert carry_out(Operation.objects.open().get()).state == "succeeded"
    assert AuditRow.objects.get(action="restart").metadata["volume"] == "missing"
    running_engine.refresh_from_db()
    assert running_engine.differs == ""


def test_volume_that_is_back_is_noted(running_engine, memory_backend):
    memory_backend.volumes -= {running_engine.pk}
    reconcile.sweep()
    assert Engine.objects.without_volume().exists()
    memory_backend.volumes |= {running_engine.pk}
    reconcile.sweep()
    assert not Engine.objects.without_volume().exists()


def test_compare_changes_nothing(running_engine, memory_backend):
    spec = Spec(Ref(uuid4(), 1), "acme", IMAGE, 31001, {}, user_id="bob")
    memory_backend.create(spec)
    memory_backend.create(replace(spec, ref=Ref(running_engine.pk, 9)))
    memory_backend.volumes -= {running_engine.pk}
    found = reconcile.compare()
    assert [each.pk for each in found.unregistered] == [spec.ref.engine_id]
    assert (found.without_volume, found.faulty) == ([running_engine], [running_engine.pk])
    assert not UnregisteredEngine.objects.exists()
    assert len(memory_backend.list()) == 3
