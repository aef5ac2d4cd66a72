"""What the database itself refuses, to the application and to the owner."""

import psycopg
import pytest

from audit import partitions, trail
from audit.actions import Action
from audit.actors import SYSTEM
from audit.models import AuditRow

CHANGES = (
    "UPDATE {} SET actor = 'nobody'",
    "DELETE FROM {}",
    "TRUNCATE {}",
    "MERGE INTO {} t USING (SELECT 1) s ON true WHEN MATCHED THEN DELETE",
)
REFUSED = psycopg.errors.InsufficientPrivilege


@pytest.fixture
def relations(months):
    """The table, both sub-parents and every month; a row in the present month of each class."""
    months.lay_out(-1, 1)
    trail.record(Action.RETENTION_PRUNE, by=SYSTEM)
    trail.record(Action.HEALTH_CHECK, by=SYSTEM)
    partitions.make_ahead()
    return ["audit_log", "audit_log_standard", "audit_log_probe", *months.attached("standard"), *months.attached("probe")]


def test_every_change_is_refused_to_the_application(relations, as_app):
    for relation in relations:
        for change in CHANGES:
            with pytest.raises(REFUSED, match="permission denied"):
                as_app.execute(change.format(relation))
    assert AuditRow.objects.count() == 2


def test_every_change_is_refused_to_the_owner(relations, as_owner):
    for relation in relations:
        for change in CHANGES:
            with pytest.raises(REFUSED, match="append-only"):
                as_owner.execute(change.format(relation))
    with pytest.raises(REFUSED, match="append-only"):
        as_owner.execute(
            "INSERT INTO audit_log SELECT * FROM audit_log ON CONFLICT (id, retention, timestamp) DO UPDATE SET actor = ''"
        )
    assert AuditRow.objects.count() == 2


def test_insert_is_refused_to_the_application_beside_the_root(relations, as_app):
    for relation in relations[1:]:
        with pytest.raises(REFUSED, match="permission denied"):
            as_app.execute(f"INSERT INTO {relation} (timestamp, action) VALUES (now(), 'start')")


@pytest.mark.parametrize("column", ["id", "txid"])
def test_insert_is_refused_to_the_application_with_a_number_of_its_own(as_app, column):
    with pytest.raises(REFUSED, match="permission denied"):
        as_app.execute(f"INSERT INTO audit_log (timestamp, action, {column}) VALUES (now(), 'start', '7')")


WAYS_AROUND = (
    "DROP TABLE audit_log",
    "ALTER TABLE audit_log ADD COLUMN x int",
    "ALTER TABLE audit_log DISABLE TRIGGER ALL",
    "DROP TRIGGER audit_append_only ON audit_log",
    "ALTER TABLE audit_log_standard DETACH PARTITION {month}",
    "DROP TABLE {month}",
    "ALTER TABLE {month} DISABLE TRIGGER audit_append_only",
    "CREATE TRIGGER mine BEFORE INSERT ON audit_log FOR EACH ROW EXECUTE FUNCTION audit_refuse()",
    "CREATE RULE mine AS ON INSERT TO audit_log DO INSTEAD NOTHING",
    "CREATE OR REPLACE FUNCTION audit_refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
    "UPDATE audit_window SET starts = now()",
    "DELETE FROM audit_window",
    "SELECT setval('audit_log_id_seq', 1)",
    "SELECT audit_add_month('standard', '2001-01-01')",
    "SELECT audit_guard('audit_log')",
    "SET session_replication_role = replica",
    "CREATE TABLE mine (x int)",
    "CREATE TEMPORARY TABLE audit_log (x int)",
    "CREATE SCHEMA mine",
    "SET ROLE roundhouse_owner",
)


def test_ways_around_are_refused_to_the_application(months, as_app):
    for statement in WAYS_AROUND:
        with pytest.raises(REFUSED):
            as_app.execute(statement.format(month=months.name(0)))


def test_grant_by_the_application_grants_nothing(as_app):
    as_app.execute("GRANT ALL ON audit_log TO PUBLIC")  # no error, only a warning
    allowed = as_app.execute("SELECT has_table_privilege('audit_log', 'UPDATE, DELETE, TRUNCATE, TRIGGER')").fetchone()
    assert allowed == (False,)


def test_replication_role_is_refused_to_the_owner(as_owner):
    with pytest.raises(REFUSED):
        as_owner.execute("SET session_replication_role = replica")


def test_every_relation_has_its_guard(relations, superuser):
    guarded = superuser.execute(
        "SELECT tgrelid::regclass::text FROM pg_trigger WHERE tgname = 'audit_append_only' AND tgenabled = 'O'"
    )
    assert {name for (name,) in guarded.fetchall()} == set(relations)
