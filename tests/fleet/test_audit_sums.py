"""`audit_check` compares the rows of each day with the keeper's sums, and goes on from a checkpoint."""

import io
import threading

import pytest
from django.core.management import CommandError, call_command
from django.db import connection

from audit import sums, trail
from audit.actions import Action
from audit.actors import SYSTEM
from audit.models import AuditRow
from engines import lifecycle
from engines.models import Engine
from fleet import consistency
from policy import products
from tests.audit.lives import STAFF, do, put


def check(**options):
    found = []
    consistency.check(found.append, **options)
    return [str(disagreement) for disagreement in found]


def command(**options):
    """What the command writes on both streams. Raises CommandError."""
    out, told = io.StringIO(), io.StringIO()
    call_command("audit_check", stdout=out, stderr=told, **options)
    return out.getvalue(), told.getvalue()


@pytest.fixture
def recorded(product, lived):
    """Rows of every kind, summed by the keeper, and known to agree."""
    lifecycle.reveal_key(Engine.objects.get(user_id="bystander"), by=STAFF)
    products.update_policy(product.pk, {"max_engines": 3}, by=STAFF)
    products.update_policy(product.pk, {"max_engines": 4}, by=STAFF)
    trail.record(Action.STAFF_LOGIN, by=STAFF, metadata={"method": "password"})
    trail.record(Action.RETENTION_PRUNE, by=SYSTEM, metadata={"rows": 5})
    sums.keep()
    assert check() == []


# -- sums --------------------------------------------------------------------------------------------------------------

POLICY = "action = 'policy_update' AND metadata ->> 'max_engines' = '3'"


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE audit_log SET actor = 'admin:bob' WHERE action = 'key_reveal'",
        "UPDATE audit_log SET timestamp = timestamp - interval '1 second' WHERE action = 'staff_login'",
        "UPDATE audit_log SET written_at = written_at + interval '1 second' WHERE action = 'staff_login'",
        """UPDATE audit_log SET metadata = '{"rows": 6}' WHERE action = 'retention_prune'""",
        f"UPDATE audit_log SET metadata = jsonb_set(metadata, '{{max_engines}}', '300') WHERE {POLICY}",
        "UPDATE audit_log SET on_behalf_of = 'eve' WHERE action = 'key_reveal'",
        "UPDATE audit_log SET client_ip = '10.9.9.9' WHERE action = 'stop'",
        "UPDATE audit_log SET txid = '5'::xid8 WHERE action = 'stop'",
    ],
)
def test_check_names_the_day_of_a_row_that_was_changed(recorded, tamper, change):
    assert tamper(change) == 1
    [said] = check()
    assert said.startswith("the rows written on ")
    assert "(standard)): at least 1 of " in said


@pytest.mark.parametrize("of", ["action = 'key_reveal'", POLICY, "action = 'staff_login'", "action = 'retention_prune'"])
def test_check_counts_the_rows_that_are_missing(recorded, tamper, of):
    assert tamper(f"DELETE FROM audit_log WHERE {of}") == 1
    [said] = check()
    there = AuditRow.objects.count()
    assert f"(standard)): 1 rows are missing: the keeper has summed {there + 1} rows, {there} are there" in said


def test_check_counts_the_rows_that_are_too_many(recorded, tamper):
    tamper(
        "INSERT INTO audit_log (id, timestamp, written_at, action, metadata)"
        " SELECT (SELECT min(id) - 1 FROM audit_log), timestamp, written_at, action, metadata"
        " FROM audit_log WHERE action = 'retention_prune'"
    )
    assert ": 1 rows are too many: " in check()[0]


def test_check_names_both_days_of_a_row_that_was_moved(recorded, tamper):
    tamper("UPDATE audit_log SET written_at = NULL WHERE id = (SELECT min(id) FROM audit_log)")
    tamper("UPDATE audit_log SET timestamp = timestamp - interval '3 days' WHERE id = (SELECT min(id) FROM audit_log)")
    said = [line for line in check() if line.startswith("the rows written on")]
    assert len(said) == 2
    assert any("1 rows are missing" in line for line in said)
    assert any("1 rows are too many: the keeper has summed 0 rows, 1 are there" in line for line in said)


def test_check_names_the_class_of_the_rows(db, tamper):
    trail.record(Action.HEALTH_CHECK, by=SYSTEM, metadata={"healthy": True})
    tamper("UPDATE audit_log SET action = 'health_check'")
    sums.keep()
    tamper("DELETE FROM audit_log")
    [said] = check()
    assert "(probe)): 1 rows are missing" in said


def test_check_raises_no_false_alarm_for_rows_that_come_late(recorded, tamper):
    """Of a transaction that was open while the keeper summed, and of a clock that was set back a week."""
    tamper("UPDATE audit_log SET written_at = written_at - interval '7 days', timestamp = timestamp - interval '7 days'")
    trail.record(Action.STAFF_LOGIN, by=STAFF, metadata={"method": "password"})
    tamper("DELETE FROM audit_sum")
    tamper("UPDATE audit_closed SET upto = 0")
    sums.keep()
    trail.record(Action.STAFF_LOGIN, by=STAFF, metadata={"method": "password"})
    tamper("UPDATE audit_log SET written_at = written_at - interval '7 days' WHERE id = (SELECT max(id) FROM audit_log)")
    said = [line for line in check() if line.startswith("the rows")]
    sums.keep()
    assert [*said, *(line for line in check() if line.startswith("the rows"))] == []


def test_check_compares_no_sums_of_a_month_that_has_left_the_window(db, tamper):
    """The keeper has shrunk the window, and has detached the month, but not dropped it yet: a reader was in its way."""
    trail.record(Action.STAFF_LOGIN, by=STAFF, metadata={"method": "password"})
    sums.keep()
    tamper("DELETE FROM audit_log")
    assert len(check()) == 1
    tamper("UPDATE audit_window SET starts = starts + interval '2 months'")
    try:
        assert check() == []
    finally:
        tamper("UPDATE audit_window SET starts = starts - interval '2 months'")


def test_check_compares_no_sums_of_another_form(recorded, tamper):
    """Such as of a database that was moved to a server with another byte order: the keeper will sum the rows anew."""
    tamper("UPDATE audit_closed SET form = 'of another server'")
    tamper("UPDATE audit_sum SET total = total + 1")
    assert check() == []
    assert f"{AuditRow.objects.count()} rows are in no sum yet." in command()[0]
    sums.keep()
    assert check() == []


def test_check_raises_no_false_alarm_while_rows_are_written_and_summed(product):
    engine = put(product)
    done = threading.Event()

    def write():
        while not done.is_set():
            lifecycle.reveal_key(engine, by=STAFF)
        connection.close()

    writers = [threading.Thread(target=write) for _ in range(2)]
    for writer in writers:
        writer.start()
    try:
        for _ in range(5):
            sums.keep()
            assert check() == []
    finally:
        done.set()
        for writer in writers:
            writer.join()


# -- the limit and the progress ----------------------------------------------------------------------------------------


@pytest.fixture
def many(lived, tamper):
    """101 engines without a move, beside those that agree."""
    columns = [field.column for field in Engine._meta.concrete_fields]
    changed = {"id": "gen_random_uuid()", "user_id": "'user ' || n", "port": "NULL", "created_at": "now()"}
    tamper(
        f"INSERT INTO engines_engine ({', '.join(columns)}) SELECT {', '.join(changed.get(c, c) for c in columns)}"
        " FROM engines_engine, generate_series(1, 101) n WHERE user_id = 'bystander'"
    )


def test_command_stops_after_100_disagreements(many):
    out = io.StringIO()
    with pytest.raises(CommandError, match="Stopped after 100 engines that disagree; "):
        call_command("audit_check", stdout=out, stderr=io.StringIO())
    assert len(out.getvalue().splitlines()) == 100


@pytest.mark.parametrize(("limit", "lines"), [(0, 101), (7, 7), (500, 101)])
def test_command_stops_after_as_many_disagreements_as_it_was_told(many, limit, lines):
    out = io.StringIO()
    with pytest.raises(CommandError):
        call_command("audit_check", limit=limit, stdout=out, stderr=io.StringIO())
    assert len(out.getvalue().splitlines()) == lines
    assert not AuditRow.objects.filter(action="audit_check").exists()


def test_command_shows_its_progress_apart_from_its_findings(lived):
    out, told = command()
    assert len(out.splitlines()) == 1
    assert "Comparing month 1 of " in told
    assert "Comparing the moves and operations of 2 engines ..." in told
    assert command(verbosity=0)[1] == ""


# -- checkpoints -------------------------------------------------------------------------------------------------------


def last_row():
    return AuditRow.objects.filter(action="audit_check").latest("id")


def test_command_leaves_a_row_from_which_the_next_goes_on(recorded):
    command()
    first = last_row()
    assert (first.actor, first.product_id, first.engine_id) == ("system", None, None)
    assert first.metadata["upto"] == sums.read_closed().upto
    assert first.metadata["engines"] == 2
    assert first.metadata["unproven"] == 0
    sums.keep()
    out, _ = command(since="last")
    assert out.startswith(f"Log and registry agree since row {first.metadata['upto']}: 2 engines, ")
    assert last_row().metadata["since"] == first.metadata["upto"]
    assert last_row().metadata["upto"] == first.pk
    assert command(since=str(first.pk))[0].startswith(f"Log and registry agree since row {first.metadata['upto']}: ")
    assert check() == []


def test_command_leaves_no_row_when_something_disagrees(recorded, tamper):
    tamper("DELETE FROM audit_log WHERE action = 'key_reveal'")
    with pytest.raises(CommandError, match="0 of 2 engines and 1 others disagree"):
        command()
    assert not AuditRow.objects.filter(action="audit_check").exists()


@pytest.mark.parametrize("metadata", [{}, {"rows": 5}, {"upto": 2**40, "fleet": "0"}, {"upto": -1}])
def test_command_believes_no_checkpoint_that_cannot_be_true(lived, metadata):
    trail.record(Action.AUDIT_CHECK, by=SYSTEM, metadata=metadata)
    with pytest.raises(CommandError, match="without --since"):
        command(since="last")


@pytest.mark.parametrize("since", ["last", "1", "yesterday", "-5", "99999999999999999999"])
def test_command_says_that_there_is_no_such_checkpoint(lived, since):
    with pytest.raises(CommandError, match=r"without --since|--since takes"):
        command(since=since)


def test_command_checks_on_a_database_that_cannot_be_written(lived):
    with connection.cursor() as cursor:
        cursor.execute("SET default_transaction_read_only = on")
    try:
        out, told = command()
    finally:
        with connection.cursor() as cursor:
            cursor.execute("RESET default_transaction_read_only")
    assert out.startswith("Log and registry agree")
    assert "This check leaves no row" in told


@pytest.fixture
def checkpoint(product, lived):
    """Of a check of a dozen engines, all of them closed and summed."""
    for number in range(10):
        put(product, user_id=f"user {number}")
    sums.keep()
    command()
    return consistency.find_checkpoint(None)


def test_check_since_finds_what_was_written_since(checkpoint, tamper):
    engine = Engine.objects.get(user_id="user 3")
    do(lifecycle.stop, engine)
    assert check(since=checkpoint) == []
    tamper("UPDATE audit_log SET call_id = gen_random_uuid() WHERE engine_id = %s AND action = 'stop'", engine.pk)
    [said] = check(since=checkpoint)
    assert said.startswith(f"engine {engine.pk} ")
    assert ", its operation the call " in said


def test_check_since_finds_a_change_without_a_row(checkpoint, tamper):
    engine = Engine.objects.get(user_id="user 3")
    do(lifecycle.stop, engine)
    tamper("DELETE FROM audit_log WHERE engine_id = %s AND action = 'stop'", engine.pk)
    assert "the log ends with move 2, the registry with 3" in check(since=checkpoint)[0]


def test_check_since_finds_a_row_without_a_change(checkpoint, tamper):
    engine = Engine.objects.get(user_id="user 3")
    do(lifecycle.stop, engine)
    tamper("UPDATE engines_engine SET seq = 2, status = 'running' WHERE id = %s", engine.pk)
    assert "says move 3, the registry has 2" in check(since=checkpoint)[0]


def test_check_since_finds_an_operation_without_its_row(checkpoint, tamper):
    engine = Engine.objects.get(user_id="user 3")
    lifecycle.stop(engine, by=STAFF)
    lifecycle.destroy(engine, by=STAFF)
    tamper("DELETE FROM audit_log WHERE action = 'operation_superseded'")
    assert "(stop, superseded) has 0 rows of an outcome" in check(since=checkpoint)[0]


def test_check_since_misses_no_row_of_a_transaction_that_was_open(lived, superuser):
    """Its number is lower than the number of a row that the first check has seen."""
    with superuser.transaction():
        superuser.execute(
            "INSERT INTO audit_log (timestamp, action, actor) VALUES (now() - interval '2 h', 'staff_logout', 'admin:eve')"
        )
        do(lifecycle.stop, Engine.objects.get(user_id="bystander"))
        sums.keep(patience_s=0.0)
        command()
    [said] = check(since=consistency.find_checkpoint(None))
    assert "(staff_logout) starts at " in said
