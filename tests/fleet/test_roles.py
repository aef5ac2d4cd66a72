"""What the application's role may not do, however it connects: wait without end, hold others up, make large objects."""

import subprocess

import psycopg
import pytest
from django.db import InternalError, OperationalError, connection, connections, transaction

from common.statements import LIMITS
from config.local import postgres
from engines import deployment
from fleet import consistency
from fleet.errors import classify
from policy.models import Product
from tests import servers, waiting
from tests.engines.registry import put_engine
from tests.envelopes import assert_error
from tests.fleet.test_migrate import migrate
from tests.staff import log_in

LARGE_OBJECTS = """
SELECT oid::regprocedure::text FROM pg_proc
WHERE pronamespace = 'pg_catalog'::regnamespace AND proname ~ '^(lo_|loread|lowrite)'
"""


@pytest.fixture
def as_app(db):
    """A session of the application's role that knows nothing of our settings."""
    with psycopg.connect(servers.SERVERS.urls.database, autocommit=True) as session:
        yield session


# -- time limits ---------------------------------------------------------------------------------------------------------


def test_role_has_time_limits_however_it_connects(as_app):
    assert {name: as_app.execute(f"SHOW {name}").fetchone()[0] for name in LIMITS} == LIMITS


def test_migrate_sets_the_limits_anew(db, superuser):
    superuser.execute(f"ALTER ROLE {postgres.APP} IN DATABASE {postgres.DATABASE} RESET ALL")
    migrate()
    with psycopg.connect(servers.SERVERS.urls.database) as session:
        assert session.execute("SHOW lock_timeout").fetchone() == (LIMITS["lock_timeout"],)


def test_owner_has_no_limits_even_where_one_role_is_both(db):
    with connections["owner"].cursor() as cursor:
        for name in LIMITS:
            cursor.execute("SELECT source, setting FROM pg_settings WHERE name = %s", [name])
            assert cursor.fetchone() == ("session", "0")


def test_replay_of_the_log_has_no_limits(db):
    seen = []

    def look(_):
        with connection.cursor() as cursor:
            seen.extend(cursor.execute(f"SHOW {name}").fetchone()[0] for name in LIMITS)

    Product.objects.create(slug="acme", display_name="Acme")
    put_engine(Product.objects.get(), "alice", seq=5)  # without rows: the replay has something to report
    consistency.check(look)
    assert set(seen) == {"0"}


@pytest.fixture
def impatient(db):
    """The test's own session waits for a tenth of a second, instead of the role's ten seconds."""
    with connection.cursor() as cursor:
        cursor.execute("SET lock_timeout = '100ms'")
    yield
    connection.close()  # the pool's connection goes with what was set: see `as_superuser`
    connection.close_pool()


def test_request_that_waits_too_long_for_a_lock_is_unavailable(product, api, superuser, impatient):
    put_engine(product)
    with superuser.transaction():
        superuser.execute("SELECT FROM policy_product FOR UPDATE")
        superuser.execute("SELECT FROM engines_engine FOR UPDATE")
        error = assert_error(api.call("POST", "/engines/alice/stop", Prefer="respond-async"), 503, "UNAVAILABLE")
        assert error["message"] == "The service is not available just now; try again in a few seconds."
        assert_error(api.call("POST", "/engines/bob/admit", {"auto_provision": True}), 503, "UNAVAILABLE")
    assert api.call("POST", "/engines/alice/stop", Prefer="respond-async").status_code == 202


def test_page_that_waits_too_long_for_a_lock_is_unavailable(superuser, impatient):
    client = log_in("rita", raise_request_exception=False)
    with superuser.transaction():
        superuser.execute("LOCK TABLE django_session, engines_engine")
        response = client.get("/admin/")
        assert response.status_code == 503
        assert "Not available just now" in response.content.decode()
    assert client.get("/admin/").status_code == 200


def test_transaction_that_idles_too_long_is_ended_and_unavailable(db, superuser):
    def idle():
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid(), set_config('idle_in_transaction_session_timeout', '50ms', true)")
            pid = cursor.fetchone()[0]
            waiting.until(lambda: not superuser.execute("SELECT 1 FROM pg_stat_activity WHERE pid = %s", [pid]).fetchone())
            cursor.execute("SELECT 1")

    with pytest.raises(OperationalError) as ended:
        idle()
    connection.close()
    assert classify(ended.value) == (503, "UNAVAILABLE")
    assert classify(InternalError("current transaction is aborted")) == (500, "INTERNAL_ERROR")


# -- large objects -------------------------------------------------------------------------------------------------------


def test_role_can_do_nothing_with_large_objects(as_app):
    functions = [name for (name,) in as_app.execute(LARGE_OBJECTS).fetchall()]
    assert len(functions) > 15
    for function in functions:
        allowed = as_app.execute("SELECT has_function_privilege(%s, 'EXECUTE')", [function]).fetchone()
        assert allowed == (False,), function
    for statement in ("lo_create(0)", "lo_creat(-1)", "lo_from_bytea(0, 'x')", "lo_put(1, 0, 'x')", "lo_import('/etc/passwd')"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            as_app.execute(f"SELECT {statement}")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        as_app.execute("SELECT FROM pg_largeobject")


def test_migrate_warns_of_a_role_that_makes_large_objects(db, superuser):
    superuser.execute("GRANT EXECUTE ON FUNCTION lo_creat(integer) TO PUBLIC")
    try:
        (line,) = migrate()
        assert line.startswith("warning: ")
        assert "no-large-objects.sql" in line
    finally:
        superuser.execute(postgres.NO_LARGE_OBJECTS.read_text())
    assert migrate() == []


def test_backup_is_restored_by_the_owner_into_a_database_without_large_objects(own_database, product, superuser, tmp_path):
    """As docs/operations.md says it."""
    dump, urls = str(tmp_path / "roundhouse.dump"), servers.SERVERS.urls
    superuser.execute(f"CREATE DATABASE restored OWNER {postgres.OWNER}")
    try:
        with psycopg.connect(restored(urls.superuser), autocommit=True) as fresh:
            fresh.execute(f"ALTER SCHEMA public OWNER TO {postgres.OWNER}")
            fresh.execute(postgres.NO_LARGE_OBJECTS.read_text())
        run("pg_dump", "--format=custom", f"--file={dump}", urls.owner)
        run("pg_restore", "--exit-on-error", "--schema=public", f"--dbname={restored(urls.owner)}", dump)
        with psycopg.connect(restored(urls.superuser)) as fresh:
            assert fresh.execute("SELECT slug FROM policy_product").fetchall() == [("acme",)]
            assert fresh.execute("SELECT count(*) FROM audit_log").fetchone()[0] > 0
        with psycopg.connect(restored(urls.database)) as copy:  # in the same cluster
            assert "but the database's object id is " in deployment.find(copy).fault
    finally:
        superuser.execute("DROP DATABASE restored WITH (FORCE)")


def restored(url):
    return f"{url.rpartition('/')[0]}/restored"


def run(command, *arguments):
    done = subprocess.run([postgres.binaries() / command, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
