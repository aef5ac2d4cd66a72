"""The keeper's sums of closed rows. What `audit_check` says of them is in tests/fleet/test_audit_sums.py."""

import threading

import psycopg
import pytest
from django.db import connection, connections, transaction

from audit import retention, sums, trail
from audit.actions import Action
from audit.actors import SYSTEM
from audit.models import AuditRow


def write(count=1, action=Action.STAFF_LOGOUT):
    for _ in range(count):
        trail.record(action, by=SYSTEM)


def summed(superuser):
    """Rows in sums by class, and what the sums should be by the rows that are there."""
    kept = superuser.execute("SELECT retention, month, day, rows, total FROM audit_sum ORDER BY 1, 2, 3").fetchall()
    there = superuser.execute(
        f"SELECT retention, ({sums.MONTH})::date, {sums.DAY}, count(*), sum({sums.HASH}) FROM audit_log r"
        " GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"
    ).fetchall()
    return kept, there


def test_keep_sums_every_row_once_over_several_runs(db, superuser):
    assert sums.read_closed() == sums.Closed(0, True)
    for _ in range(3):
        write(2)
        trail.record(Action.HEALTH_CHECK, by=SYSTEM, metadata={"healthy": True})
        upto = sums.keep()
        assert upto == AuditRow.objects.latest("id").pk == sums.read_closed().upto
    kept, there = summed(superuser)
    assert kept == there
    assert {row[0]: row[3] for row in kept} == {"standard": 6, "probe": 3}


def test_keep_waits_for_a_row_of_a_lower_number_that_is_not_there_yet(db, as_app, superuser):
    write()
    first = sums.keep()
    with as_app.transaction():
        as_app.execute("INSERT INTO audit_log (timestamp, action) VALUES (now(), 'staff_logout')")
        write()
        assert sums.keep(patience_s=0.1) == first
    assert sums.keep() == first + 2
    kept, there = summed(superuser)
    assert kept == there
    assert sum(row[3] for row in kept) == 3


def test_keep_holds_no_writer_up_and_waits_for_no_reader(db, as_app):
    write()
    with as_app.transaction():
        as_app.execute("SELECT count(*) FROM audit_log")
        assert sums.keep(patience_s=0.0) == AuditRow.objects.latest("id").pk


def test_keep_at_once_does_the_work_of_one(db, superuser):
    write(5)

    def keep():
        sums.keep()
        connections.close_all()

    keepers = [threading.Thread(target=keep) for _ in range(4)]
    for keeper in keepers:
        keeper.start()
    for keeper in keepers:
        keeper.join(20)
    kept, there = summed(superuser)
    assert kept == there


def test_keep_goes_on_where_a_run_has_ended(db, superuser):
    """The first sums of a large log take several runs. Each batch is a transaction of its own."""
    write()
    superuser.execute("SELECT setval('audit_log_id_seq', nextval('audit_log_id_seq') + %s)", [2 * sums.BATCH])
    write()
    first = AuditRow.objects.earliest("id").pk
    last = AuditRow.objects.latest("id").pk
    while (reached := sums.keep(run_s=0.0)) < first:
        pass  # the numbers of earlier tests
    assert reached < last
    assert sums.keep() == last
    kept, there = summed(superuser)
    assert kept == there


def test_keep_begins_anew_when_the_sums_are_of_another_form(db, superuser):
    write(2)
    sums.keep()
    superuser.execute("UPDATE audit_closed SET form = 'of another server'")
    superuser.execute("UPDATE audit_sum SET total = 1")
    assert sums.read_closed().is_comparable is False
    sums.keep()
    assert sums.read_closed().is_comparable is True
    kept, there = summed(superuser)
    assert kept == there


def test_hash_covers_every_column_of_the_log(superuser):
    """A new column needs a new `VERSION`, with which the keeper sums all rows anew."""
    columns = superuser.execute("SELECT attname FROM pg_attribute WHERE attrelid = 'audit_log'::regclass AND attnum > 0")
    assert sorted(sums._COLUMNS) == sorted(name for (name,) in columns.fetchall())


@pytest.mark.parametrize("table", ["audit_sum", "audit_closed"])
@pytest.mark.parametrize("statement", ["INSERT INTO {} DEFAULT VALUES", "DELETE FROM {}", "TRUNCATE {}"])
def test_application_cannot_write_the_sums(as_app, table, statement):
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        as_app.execute(statement.format(table))


def test_hash_of_a_row_is_the_same_on_every_server(db):
    """A dump is restored into another version of PostgreSQL, and sessions have settings of their own."""
    row, found = row_of_values(), set()
    for setting in ("TIME ZONE 'UTC'", "TIME ZONE 'Asia/Tokyo'", "DateStyle = 'German'"):
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(f"SET LOCAL {setting}")
            cursor.execute(f"SELECT {sums.HASH}, {sums.FORM} FROM (SELECT {row}) r")
            found.add(cursor.fetchone())
    assert found == {(EXPECTED, EXPECTED_FORM)}


def row_of_values():
    """A row of the log in which each column has a value."""
    values = {
        "id": "7::bigint", "timestamp": "'2026-03-29 01:30:00.123456+00'::timestamptz", "engine_seq": "3::bigint",
        "metadata": """'{"reason": "ü", "n": 1.50, "list": [1, null]}'::jsonb""", "duration_ms": "5::int", "txid": "'99'::xid8",
        "client_ip": "'2001:db8::1'::inet", "written_at": "'2026-03-29 01:30:01+00'::timestamptz", "key_id": "NULL::uuid",
        "stretch": "2::smallint",
    }  # fmt: skip
    ids = ("product_id", "engine_id", "operation_id", "call_id")
    values |= dict.fromkeys(ids, "'00000000-0000-4000-8000-00000000000a'::uuid")
    return ", ".join(values.get(column, f"'{column}'::text") + f" AS {column}" for column in sums._COLUMNS)


EXPECTED = -7792802982531948605
EXPECTED_FORM = "1:-331566861400905913"


def test_prune_forgets_the_sums_of_a_dropped_month(months, superuser):
    months.lay_out(-14, 3)
    trail.record(Action.STAFF_LOGOUT, by=SYSTEM, started=months.at(-14))
    write()
    sums.keep()
    assert len(summed(superuser)[0]) == 2
    assert retention.prune().rows == 1
    [(_, month, *_)] = summed(superuser)[0]
    assert month == months.at(0).date().replace(day=1)
    sums.keep()
    kept, there = summed(superuser)
    assert kept == there
