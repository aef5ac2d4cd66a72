from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from django.db import connection, transaction
from django.db.utils import DataError, ProgrammingError

from audit import actors, trail
from audit.actions import Action
from audit.models import AuditRow
from common import context
from common.context import Call
from policy.models import Product

BY = actors.staff("ada")
SUBJECT = (
    " RETURNING id AS product_id, slug AS product_slug, NULL::text AS user_id, NULL::uuid AS engine_id,"
    " NULL::text AS from_status, NULL::text AS to_status, NULL::bigint AS engine_seq"
)
RENAME = "UPDATE policy_product SET display_name = %(p_name)s WHERE slug = %(p_slug)s" + SUBJECT


def now():
    with connection.cursor() as cursor:
        cursor.execute("SELECT clock_timestamp()")
        return cursor.fetchone()[0]


def row(pk):
    return AuditRow.objects.get(pk=pk)


def window():
    with connection.cursor() as cursor:
        cursor.execute("SELECT starts, ends FROM audit_window WHERE retention = 'standard'")
        return cursor.fetchone()


# -- record ------------------------------------------------------------------------------------------------------------


def test_record_writes_every_column(db):
    ids = {"product_id": uuid4(), "engine_id": uuid4()}
    subject = trail.Subject(**ids, product_slug="acme", user_id="alice", from_status="running", to_status="stopped", engine_seq=4)
    operation_id = uuid4()
    written = row(
        trail.record(Action.STOP, subject, by=BY, metadata={"attempt": 1, "cause": "requested"}, operation_id=operation_id)
    )
    assert (written.product_id, written.engine_id, written.operation_id) == (*ids.values(), operation_id)
    assert (written.product_slug, written.user_id, written.engine_seq) == ("acme", "alice", 4)
    assert (written.from_status, written.to_status) == ("running", "stopped")
    assert (written.action, written.actor, written.retention) == ("stop", "admin:ada", "standard")
    assert written.metadata == {"attempt": 1, "cause": "requested"}


def test_record_leaves_null_what_does_not_apply(db):
    written = row(trail.record(Action.RETENTION_PRUNE, by=actors.SYSTEM))
    given = {"id", "timestamp", "action", "actor", "metadata", "retention", "call_id", "written_at"}
    empty = [
        field.attname
        for field in AuditRow._meta.fields
        if field.attname not in given and getattr(written, field.attname) is not None
    ]
    assert empty == []
    assert written.metadata == {}


def test_record_puts_probes_into_their_own_class(db, superuser):
    pk = trail.record(Action.HEALTH_CHECK, by=actors.SYSTEM)
    assert row(pk).retention == "probe"
    assert superuser.execute("SELECT id FROM audit_log_probe").fetchall() == [(pk,)]


def test_record_takes_the_time_of_the_database_and_no_duration(db):
    before = now()
    written = row(trail.record(Action.START, by=BY))
    assert before <= written.timestamp <= now()
    assert written.duration_ms is None


def test_record_keeps_when_the_action_started_and_how_long_it_took(db):
    started = now() - timedelta(seconds=90)
    written = row(trail.record(Action.START, by=BY, started=started))
    assert written.timestamp == started
    assert 90_000 <= written.duration_ms < 95_000


CALL = Call(uuid4(), "req-7", uuid4(), "ci", "203.0.113.7", "acme-backend/3.1", "ada@acme.example")
CALLER = ("key_id", "client_ip", "user_agent", "on_behalf_of")


def test_record_names_the_call_at_hand_and_who_called(db):
    with context.of_call(CALL):
        written = row(trail.record(Action.START, by=BY))
    assert (written.call_id, written.request_id) == (CALL.call_id, "req-7")
    assert [getattr(written, name) for name in CALLER] == [getattr(CALL, name) for name in CALLER]


def test_record_names_the_call_but_no_caller_for_work_of_the_fleet_itself(db):
    with context.of_call(CALL):
        written = row(trail.record(Action.ORPHAN_REMOVED, by=actors.SYSTEM))
    assert (written.call_id, written.request_id) == (CALL.call_id, "req-7")
    assert [getattr(written, name) for name in CALLER] == [None] * 4


def test_record_outside_a_request_names_one_call_until_the_next_begins(db):
    first, second = (row(trail.record(Action.START, by=BY)) for _ in range(2))
    assert first.call_id == second.call_id is not None
    assert first.request_id is None
    context.enter(None)  # as at the end of a task
    assert row(trail.record(Action.START, by=BY)).call_id != first.call_id


def test_record_says_when_it_was_written_by_the_clock_and_not_by_the_transaction(db):
    with transaction.atomic():
        before = now()
        first, second = (row(trail.record(Action.START, by=BY)) for _ in range(2))
    assert first.timestamp == second.timestamp < before < first.written_at < second.written_at < now()


def test_record_marks_rows_of_one_transaction_with_its_id(db, superuser):
    with transaction.atomic():
        together = {trail.record(Action.START, by=BY), trail.record(Action.STOP, by=BY)}
    apart = trail.record(Action.START, by=BY)
    found = dict(superuser.execute("SELECT id, txid::text FROM audit_log").fetchall())
    assert len({found[pk] for pk in together}) == 1
    assert found[apart] not in {found[pk] for pk in together}


def test_record_goes_with_the_transaction_it_is_in(db):
    with transaction.atomic():
        trail.record(Action.START, by=BY)
        transaction.set_rollback(True)
    assert not AuditRow.objects.exists()


@pytest.mark.parametrize(("metadata", "error"), [({"api_key": "x"}, ValueError), ({"attempt": "one"}, TypeError)])
def test_record_refuses_metadata_outside_the_catalogue(db, metadata, error):
    with pytest.raises(error):
        trail.record(Action.START, by=BY, metadata=metadata)
    assert not AuditRow.objects.exists()


# -- wrong clocks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("year", [1970, 2001])
def test_record_moves_a_time_before_the_window_to_its_start(db, year):
    started = datetime(year, 1, 1, tzinfo=UTC)
    written = row(trail.record(Action.START, by=BY, metadata={"port": 9001}, started=started))
    assert written.timestamp == window()[0]
    assert written.metadata == {"port": 9001, "clamped_from": started.isoformat()}
    assert written.duration_ms == 2**31 - 1


def test_record_moves_a_time_after_the_window_to_its_last_moment(db):
    started = datetime(2999, 1, 1, tzinfo=UTC)
    written = row(trail.record(Action.START, by=BY, started=started))
    assert written.timestamp == window()[1] - timedelta(microseconds=1)
    assert written.metadata == {"clamped_from": started.isoformat()}
    assert written.duration_ms == 0


@pytest.mark.parametrize("edge", ["first", "last"])
def test_record_leaves_a_time_at_the_edge_of_the_window(db, edge):
    starts, ends = window()
    started = starts if edge == "first" else ends - timedelta(microseconds=1)
    written = row(trail.record(Action.START, by=BY, started=started))
    assert (written.timestamp, written.metadata) == (started, {})


def test_record_works_when_the_window_has_run_out(months):
    months.lay_out(-4, -2)
    before = now()
    written = row(trail.record(Action.START, by=BY))
    assert written.timestamp == months.at(-1, 0) - timedelta(microseconds=1)
    assert datetime.fromisoformat(written.metadata["clamped_from"]) >= before


# -- record_move -------------------------------------------------------------------------------------------------------


def test_record_move_writes_the_row_with_the_change(product):
    pk = trail.record_move(RENAME, {"p_name": "New", "p_slug": "acme"}, Action.POLICY_UPDATE, by=BY, metadata={"max_engines": 3})
    assert Product.objects.get().display_name == "New"
    written = row(pk)
    assert (written.product_id, written.product_slug, written.metadata) == (product.pk, "acme", {"max_engines": 3})


def test_record_move_writes_nothing_when_nothing_changes(product):
    rows = AuditRow.objects.count()
    assert trail.record_move(RENAME, {"p_name": "New", "p_slug": "none"}, Action.POLICY_UPDATE, by=BY) is None
    assert AuditRow.objects.count() == rows


def test_record_move_changes_nothing_when_the_row_cannot_be_written(product, broken_log):
    with broken_log(), pytest.raises(Exception, match="the log is broken"):
        trail.record_move(RENAME, {"p_name": "New", "p_slug": "acme"}, Action.POLICY_UPDATE, by=BY)
    assert Product.objects.get().display_name == product.display_name


def test_record_move_changes_nothing_without_a_window(product, superuser, months):
    """Not even outside a transaction: no row, no change."""
    months.lay_out(-4, -2)
    superuser.execute("DELETE FROM audit_window")
    with pytest.raises(Exception, match="no partition of relation"):
        trail.record_move(RENAME, {"p_name": "New", "p_slug": "acme"}, Action.POLICY_UPDATE, by=BY)
    assert Product.objects.get().display_name == product.display_name


def test_record_move_refuses_parameters_that_are_the_rows_own(product):
    with pytest.raises(ValueError, match="'actor'"):
        trail.record_move(RENAME, {"p_name": "New", "p_slug": "acme", "actor": "x"}, Action.POLICY_UPDATE, by=BY)


def test_record_move_refuses_an_update_that_does_not_say_what_it_is_about(product):
    with pytest.raises(ProgrammingError):
        trail.record_move("UPDATE policy_product SET display_name = '' RETURNING id", {}, Action.POLICY_UPDATE, by=BY)
    assert Product.objects.get().display_name == product.display_name


def test_record_refuses_text_that_postgresql_cannot_hold(db):
    with pytest.raises(DataError):
        trail.record(Action.START, by=BY, metadata={"reason": "\0"})
