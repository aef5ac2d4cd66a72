"""What the database itself refuses, to the application and to the owner: changes of rows, and rows that cannot be true."""

import psycopg
import pytest

from audit import partitions, trail
from audit.actions import Action
from audit.actors import SYSTEM
from audit.catalogue import CATALOGUE
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


@pytest.mark.parametrize(("column", "value"), [("id", "7"), ("txid", "7"), ("written_at", "2001-01-01")])
def test_insert_is_refused_to_the_application_with_what_the_database_chooses(as_app, column, value):
    with pytest.raises(REFUSED, match="permission denied"):
        as_app.execute(f"INSERT INTO audit_log (timestamp, action, {column}) VALUES (now(), 'start', %s)", [value])


# -- rows that cannot be true ------------------------------------------------------------------------------------------

IMPOSSIBLE = psycopg.errors.CheckViolation
ACTORS = ("system", "admin", "acme", "a-1", "admin:ada", "admin:Ada L. <ada@acme.example>", f"admin:{'x' * 150}", "x" * 63)
NOT_ACTORS = (
    "", "x", "x" * 64, "-acme", "Acme", "acme corp", "admin:", "admin:ada\n", f"admin:{'x' * 151}", "system ", " admin", "acmé",
    "acme\n", "root:ada",
)  # fmt: skip


def insert(connection, **columns):
    """Insert a row; returns its id and the time at which it was written."""
    columns = {"action": "start", "retention": CATALOGUE[Action.START].retention, **columns}
    names, values = ", ".join(columns), ", ".join(f"%({name})s" for name in columns)
    statement = f"INSERT INTO audit_log (timestamp, {names}) VALUES (now(), {values}) RETURNING id, written_at"
    return connection.execute(statement, columns).fetchone()


@pytest.mark.parametrize("actor", ACTORS)
def test_insert_takes_every_form_of_an_actor(as_app, actor):
    assert insert(as_app, actor=actor)


@pytest.mark.parametrize("role", ["as_app", "as_owner"])
@pytest.mark.parametrize("actor", NOT_ACTORS)
def test_insert_is_refused_with_what_is_no_actor(request, role, actor):
    with pytest.raises(IMPOSSIBLE, match="an actor is system, admin, admin:<name> or the slug of a product"):
        insert(request.getfixturevalue(role), actor=actor)


@pytest.mark.parametrize("role", ["as_app", "as_owner"])
@pytest.mark.parametrize(
    ("action", "kind"), [("self_destruct", "standard"), ("", "standard"), ("start", "probe"), ("health_check", "standard")]
)
def test_insert_is_refused_with_an_action_or_a_class_outside_the_catalogue(request, role, action, kind):
    with pytest.raises(IMPOSSIBLE, match="audit_action"):
        insert(request.getfixturevalue(role), action=action, retention=kind)


@pytest.mark.parametrize("metadata", ["[]", "null", '"start"', "7"])
def test_insert_is_refused_with_metadata_that_are_no_object(as_app, metadata):
    with pytest.raises(IMPOSSIBLE, match="metadata"):
        insert(as_app, metadata=metadata)


def test_time_of_writing_is_the_databases_whatever_the_owner_says(as_owner):
    (before,) = as_owner.execute("SELECT clock_timestamp()").fetchone()
    _, written_at = insert(as_owner, written_at="2001-01-01")
    assert before <= written_at <= as_owner.execute("SELECT clock_timestamp()").fetchone()[0]


def test_rows_of_a_month_made_later_are_looked_at_too(relations, as_app, superuser):
    """Also of a statement with many rows: a good row does not carry a bad one along."""
    watched = superuser.execute("SELECT tgrelid::regclass::text FROM pg_trigger WHERE tgname = 'audit_row_possible'")
    assert {name for (name,) in watched.fetchall()} == set(relations)
    with pytest.raises(IMPOSSIBLE):
        as_app.execute(
            "INSERT INTO audit_log (timestamp, action, actor) SELECT starts, 'start', actor"
            " FROM audit_window, unnest(ARRAY['acme', 'Nobody']) actor WHERE retention = 'standard'"
        )
    assert AuditRow.objects.count() == 2


def test_code_from_before_the_columns_still_writes(as_app):
    written = as_app.execute(
        "INSERT INTO audit_log (timestamp, product_id, user_id, engine_id, action, actor, metadata, duration_ms, product_slug,"
        " from_status, to_status, engine_seq, operation_id, request_id, retention) VALUES (now(), NULL, NULL, NULL, 'start',"
        " 'system', '{}', NULL, NULL, NULL, NULL, NULL, NULL, NULL, 'standard') RETURNING written_at, call_id"
    ).fetchone()
    assert written[0] is not None
    assert written[1] is None


# -- ways around -------------------------------------------------------------------------------------------------------


WAYS_AROUND = (
    "DROP TABLE audit_log",
    "ALTER TABLE audit_log ADD COLUMN x int",
    "ALTER TABLE audit_log DISABLE TRIGGER ALL",
    "DROP TRIGGER audit_append_only ON audit_log",
    "DROP TRIGGER audit_row_possible ON audit_log",
    "ALTER TABLE audit_log_standard DETACH PARTITION {month}",
    "DROP TABLE {month}",
    "ALTER TABLE {month} DISABLE TRIGGER audit_append_only",
    "CREATE TRIGGER mine BEFORE INSERT ON audit_log FOR EACH ROW EXECUTE FUNCTION audit_refuse()",
    "CREATE RULE mine AS ON INSERT TO audit_log DO INSTEAD NOTHING",
    "CREATE OR REPLACE FUNCTION audit_refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
    "CREATE OR REPLACE FUNCTION audit_check_row() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
    "INSERT INTO audit_action VALUES ('self_destruct', 'standard')",
    "UPDATE audit_action SET action = 'self_destruct'",
    "DELETE FROM audit_action",
    "TRUNCATE audit_action",
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
