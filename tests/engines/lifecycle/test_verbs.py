"""The verbs: what may be asked in which state, who joins whom, and what a destroy does to the others."""

import itertools
import sys

import pytest
from django.db import IntegrityError, transaction

from audit import actors
from audit.models import AuditRow
from engines import identifiers, lifecycle, operations
from engines.errors import (
    EngineAlreadyExists,
    EngineAlreadyRunning,
    EngineNotFound,
    EngineNotRunning,
    InvalidUserId,
    OperationInProgress,
)
from engines.models import Engine, Kind, Operation, OperationState, Status
from engines.transitions import TRANSITIONS
from policy import crypto
from tests.conftest import make_product
from tests.engines.registry import put_engine, put_operation

ACME = actors.product("acme")
VERBS = {
    Kind.START: lifecycle.start,
    Kind.STOP: lifecycle.stop,
    Kind.SLEEP: lifecycle.sleep,
    Kind.WAKE: lifecycle.wake,
    Kind.RESTART: lifecycle.restart,
    Kind.ROTATE_KEY: lifecycle.rotate_key,
}
LIVING = [status for status in Status if status != Status.DESTROYED]
ALLOWED = {
    Kind.START: {"stopped", "failed", "sleeping"},
    Kind.STOP: {"running", "sleeping", "failed"},
    Kind.SLEEP: {"running"},
    Kind.WAKE: {"sleeping"},
    Kind.RESTART: {"running", "failed"},
    Kind.ROTATE_KEY: {"running"},
}


def test_verb_opens_an_operation_where_the_table_allows_it_and_else_nothing(product, subtests):
    for (kind, verb), status in itertools.product(VERBS.items(), LIVING):
        with subtests.test(kind=kind, status=status):
            engine = put_engine(product, f"{kind}-{status}", status)
            if status in ALLOWED[kind]:
                operation = verb(engine, by=ACME)
                assert (operation.kind, operation.state, operation.actor) == (kind, "pending", "acme")
                assert lifecycle.can(engine, kind)
            else:
                already = kind in (Kind.START, Kind.WAKE) and status == Status.RUNNING
                with pytest.raises(EngineAlreadyRunning if already else EngineNotRunning):
                    verb(engine, by=ACME)
                assert not lifecycle.can(engine, kind)
                assert operations.find_open(engine) is None
            assert Engine.objects.get(pk=engine.pk).status == status


def test_transitions_are_what_the_contract_says():
    assert {kind: set(TRANSITIONS[kind].before) for kind in VERBS} == ALLOWED
    assert TRANSITIONS[Kind.PROVISION].before == {Status.PROVISIONING}
    assert TRANSITIONS[Kind.DESTROY].before == {Status.DESTROYING}
    assert {kind: transition.after.value for kind, transition in TRANSITIONS.items()} == {
        **dict.fromkeys([Kind.PROVISION, Kind.START, Kind.WAKE, Kind.RESTART, Kind.ROTATE_KEY], "running"),
        Kind.STOP: "stopped",
        Kind.SLEEP: "sleeping",
        Kind.DESTROY: "destroyed",
    }


@pytest.mark.parametrize("kind", VERBS)
def test_same_verb_joins_and_another_is_refused(product, kind):
    engine = put_engine(product, status=min(ALLOWED[kind]))
    operation = VERBS[kind](engine, by=ACME)
    assert VERBS[kind](engine, by=actors.staff("sam")) == operation
    for other in VERBS.keys() - {kind}:
        with pytest.raises(OperationInProgress) as refused:
            VERBS[other](engine, by=ACME)
        assert refused.value.operation_id == operation.pk
    assert Operation.objects.count() == 1


def test_verb_for_another_reason_does_not_join(product):
    engine = put_engine(product)
    lifecycle.stop(engine, by=ACME, reason="one")
    with pytest.raises(OperationInProgress):
        lifecycle.stop(engine, by=ACME, reason="two")


def test_verb_refuses_a_destroyed_engine(product):
    engine = put_engine(product, status="destroyed", destroyed_at="2026-01-01T00:00:00Z", key_hash="", key_ciphertext="")
    for verb in (*VERBS.values(), lifecycle.destroy):
        with pytest.raises(EngineNotFound):
            verb(engine, by=ACME)


# -- provision ---------------------------------------------------------------------------------------------------------------


def test_provision_promises_an_engine_with_key_and_port(product):
    operation = lifecycle.provision(product, "alice", by=ACME)
    engine = Engine.objects.get()
    assert (engine.status, engine.seq, engine.user_id, engine.incarnation) == ("provisioning", 1, "alice", 1)
    assert crypto.hash_key(crypto.decrypt(engine.key_ciphertext)) == engine.key_hash
    row = AuditRow.objects.get(action="provision_requested")
    assert (row.engine_id, row.engine_seq, row.operation_id) == (engine.pk, 1, operation.pk)
    assert (row.from_status, row.to_status, row.metadata["port"]) == (None, "provisioning", engine.port)


def test_provision_joins_one_of_the_same_image_only(product):
    product.policy = {"images": ["*"]}
    product.save()
    operation = lifecycle.provision(product, "alice", by=ACME, engine_version="a:1")
    assert lifecycle.provision(product, "alice", by=ACME, engine_version="a:1") == operation
    with pytest.raises(EngineAlreadyExists):
        lifecycle.provision(product, "alice", by=ACME, engine_version="a:2")
    with pytest.raises(EngineAlreadyExists):
        lifecycle.provision(product, "alice", by=ACME)


def test_provision_after_a_destroy_is_a_new_engine(running_engine, carry_out):
    assert carry_out(lifecycle.destroy(running_engine, by=ACME)).state == "succeeded"
    operation = lifecycle.provision(running_engine.product, "alice", by=ACME)
    assert operation.engine_id != running_engine.pk
    gone = Engine.objects.get(pk=running_engine.pk)
    assert (gone.status, gone.key_hash, gone.key_ciphertext) == ("destroyed", "", "")


# -- destroy -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", LIVING)
def test_destroy_is_taken_in_every_state(product, status):
    engine = put_engine(product, status=status)
    operation = lifecycle.destroy(engine, by=ACME)
    engine.refresh_from_db()
    assert (engine.status, operation.kind) == ("destroying", "destroy")
    requested = AuditRow.objects.filter(action="destroy_requested")
    assert [row.from_status for row in requested] == ([] if status == Status.DESTROYING else [status])


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind != Kind.DESTROY])
@pytest.mark.parametrize("state", [OperationState.PENDING, OperationState.RUNNING])
def test_destroy_supersedes_whatever_is_open(product, kind, state):
    engine = put_engine(product, status=min(TRANSITIONS[kind].before))
    operation = put_operation(engine, kind, state)
    destroy = lifecycle.destroy(engine, by=ACME)
    operation.refresh_from_db()
    assert operation.state == "superseded"
    assert operation.finished_at is not None
    row = AuditRow.objects.get(action="operation_superseded")
    assert (row.operation_id, row.actor, row.metadata) == (operation.pk, "acme", {"kind": kind, "superseded_by": "destroy"})
    assert operations.find_open(engine) == destroy


def test_destroy_joins_a_destroy(product):
    engine = put_engine(product)
    first = lifecycle.destroy(engine, by=ACME)
    assert lifecycle.destroy(engine, by=actors.staff("sam"), reason="again") == first
    assert AuditRow.objects.filter(action="destroy_requested").count() == 1


def test_destroy_ends_a_pending_key(product):
    engine = put_engine(product)
    lifecycle.rotate_key(engine, by=ACME)
    assert Engine.objects.get().pending_key_hash
    lifecycle.destroy(engine, by=ACME)
    engine.refresh_from_db()
    assert (engine.pending_key_hash, engine.pending_key_ciphertext) == ("", "")


# -- rotate_key --------------------------------------------------------------------------------------------------------------


def test_rotate_key_keeps_the_new_key_as_pending(product):
    engine = put_engine(product)
    operation = lifecycle.rotate_key(engine, by=ACME)
    now = Engine.objects.get()
    assert (now.key_hash, now.incarnation) == (engine.key_hash, 1)
    assert (now.incarnations, operation.incarnation) == (2, 2)
    assert crypto.hash_key(crypto.decrypt(now.pending_key_ciphertext)) == now.pending_key_hash != now.key_hash
    assert lifecycle.rotate_key(engine, by=ACME) == operation
    assert Engine.objects.get().pending_key_hash == now.pending_key_hash


CONTROLS = [f"a{control}b" for control in "\x01\t\n\r\x1b\x1f\x7f\x80\x85\x9f"] + ["\n", "alice\n"]


# -- the database's own guards -----------------------------------------------------------------------------------------------


def refuses(constraint, act):
    with pytest.raises(IntegrityError, match=constraint), transaction.atomic():
        act()


def test_database_keeps_one_living_engine_of_a_user(product):
    put_engine(product, "gone", "destroyed", destroyed_at="2026-01-01T00:00:00Z", key_hash="", key_ciphertext="")
    put_engine(product, "gone")
    put_engine(make_product("other"), "gone")
    refuses("engine_one_living_per_user", lambda: put_engine(product, "gone", "stopped"))


def test_database_keeps_one_engine_per_port_and_one_open_operation_per_engine(product):
    engine = put_engine(product, port=30000)
    refuses("engine_one_per_port", lambda: put_engine(product, "bob", port=30000))
    put_operation(engine)
    refuses("operation_one_open_per_engine", lambda: put_operation(engine, Kind.START, "running"))
    put_operation(engine, Kind.START, "failed", finished_at="2026-01-01T00:00:00Z")


@pytest.mark.parametrize(
    ("constraint", "columns"),
    [
        ("engine_status_known", {"status": "lost"}),
        ("engine_tombstone_is_destroyed", {"status": "destroyed"}),
        ("engine_tombstone_is_destroyed", {"destroyed_at": "2026-01-01T00:00:00Z"}),
        ("engine_living_has_key", {"key_hash": ""}),
        ("engine_incarnation_given", {"incarnation": 2}),
        ("engine_restart_only_failed", {"next_restart_at": "2026-01-01T00:00:00Z"}),
        *(("engine_user_id_printable", {"user_id": user}) for user in ("", "x" * 256, ".", "..", *CONTROLS)),
        ("engine_seq_positive", {"seq": 0}),
    ],
)
def test_database_refuses_an_engine_that_cannot_be(product, constraint, columns):
    refuses(constraint, lambda: put_engine(product, **columns))


@pytest.mark.parametrize("user", CONTROLS)
def test_name_that_the_database_refuses_is_refused_before(product, user):
    with pytest.raises(InvalidUserId):
        lifecycle.provision(product, user, by=ACME)


def test_database_takes_every_name_that_we_take(product):
    engine = put_engine(product)
    letters = [letter for letter in map(chr, range(sys.maxunicode + 1)) if letter == "." or accepted(letter)]
    assert len(letters) > 100_000
    for first in range(0, len(letters), 255):
        name = "".join(letters[first : first + 255])
        assert identifiers.check_user_id(name) == name
        Engine.objects.filter(pk=engine.pk).update(user_id=name)


def accepted(letter):
    try:
        identifiers.check_user_id(letter)
    except InvalidUserId:
        return False
    return True
