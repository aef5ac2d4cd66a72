"""A pooler between us and PostgreSQL is found out: nothing is prepared there, and the owner refuses it."""

import contextlib
import os
import subprocess
import sys

import psycopg
import pytest
from django.contrib.auth.models import Group
from django.core.management import CommandError, call_command
from django.core.management.base import SystemCheckError
from django.db import OperationalError, connection, connections

from audit.models import AuditRow
from config import settings as database_settings
from config.local.home import BASE_DIR
from fleet.staff import roles
from tests import pgbouncer, waiting
from tests.read_only import read_only

REFUSED = "name PostgreSQL itself in ORCH_DATABASE_OWNER_URL"


@pytest.fixture(scope="module")
def pooler(database):
    """The application's URL through PgBouncer in transaction mode."""
    with pgbouncer.running() as url:
        yield url


@pytest.fixture
def through(db, pooler):
    """The application's connections of this process lead through PgBouncer."""
    with pgbouncer.leading("default", pooler):
        yield connections["default"]


@pytest.fixture
def owner_through(db, pooler):
    """The owner's connections of this process do, too."""
    with pgbouncer.leading("owner", pooler):
        yield connections["owner"]


def test_nothing_is_prepared_behind_a_pooler(through):
    through.ensure_connection()
    assert through.connection.prepare_threshold is None


def test_statements_are_prepared_without_a_pooler(db):
    connection.ensure_connection()
    assert connection.connection.prepare_threshold == 0


def test_migrate_works_with_a_pooler_for_the_application(through):
    Group.objects.all().delete()
    call_command("migrate", verbosity=0)
    assert {group.name for group in Group.objects.all()} == set(roles.NAMES)


@pytest.mark.parametrize(("command", "action"), [("audit_check", "audit_check"), ("rotate_master_key", "master_key_rotate")])
def test_command_works_behind_a_pooler(through, product, running_engine, command, action):
    call_command(command)
    assert AuditRow.objects.filter(action=action).count() == 1


def test_migrate_refuses_a_pooler_for_the_owner(owner_through):
    with pytest.raises(CommandError, match=REFUSED):
        call_command("migrate", verbosity=0)


def test_check_reports_a_pooler_for_the_owner(owner_through):
    with pytest.raises(SystemCheckError, match=f"(?s)fleet.E002.*{REFUSED}"):
        call_command("check", deploy=True, databases=["owner"])


def test_check_says_nothing_of_an_owner_with_a_session(db, capsys):
    call_command("check", databases=["owner"], tags=["database"], deploy=True)
    assert "no issues" in capsys.readouterr().out


def test_keeper_ends_at_start_with_a_pooler_for_the_owner(pooler):
    environment = {**os.environ, "ORCH_DATABASE_URL": pooler, "ORCH_DATABASE_OWNER_URL": ""}
    command = [sys.executable, "-m", "config.worker", "keeper"]
    done = subprocess.run(command, cwd=BASE_DIR, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("settings: ")
    assert REFUSED in line


def test_sessions_that_cannot_write_end_behind_the_pooler(through, pooler, superuser):
    """Also the sessions that PgBouncer lends only to many clients at once: it prefers the session used last."""
    with read_only(), contextlib.ExitStack() as opened:
        clients = [opened.enter_context(psycopg.connect(pooler)) for _ in range(4)]
        demoted = [client.execute("SELECT pg_backend_pid()").fetchone()[0] for client in clients]  # each in a transaction
    waiting.until(lambda: _can_write(through), 5, "the database can be written")
    assert not superuser.execute("SELECT pid FROM pg_stat_activity WHERE pid = ANY(%s)", [demoted]).fetchall()


def _can_write(connection):
    try:
        with connection.cursor() as cursor:
            cursor.execute("UPDATE engines_host SET name = name")
    except OperationalError:
        return False
    finally:
        connection.close()
    return True


def test_url_with_several_hosts_leads_to_the_host_that_can_be_written():
    several = database_settings._database("postgresql://app:p@/roundhouse?host=a,b&port=5432,5433")["OPTIONS"]
    assert (several["host"], several["port"], several["target_session_attrs"]) == ("a,b", "5432,5433", "read-write")
    assert "target_session_attrs" not in database_settings._database("postgresql://app:p@a/roundhouse")["OPTIONS"]
