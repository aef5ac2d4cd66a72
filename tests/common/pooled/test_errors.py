"""Errors after which a connection is of no use: the connection is given up, and all others of the pool are looked at anew."""

import psycopg
import pytest
from django.db import InternalError, OperationalError, connection, transaction

from common import statements
from common.pooled import errors
from tests import waiting


def _backend():
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return cursor.fetchone()[0]


def _fail(sqlstate):
    with connection.cursor() as cursor:
        cursor.execute(f"DO $$ BEGIN RAISE EXCEPTION 'made to fail' USING ERRCODE = '{sqlstate}'; END $$")


@pytest.mark.parametrize("sqlstate", [*errors.USELESS, "08006"])
def test_connection_is_given_up_after_an_error_that_says_it_is_of_no_use(db, sqlstate):
    before = _backend()
    with pytest.raises(OperationalError):
        _fail(sqlstate)
    assert _backend() != before


def test_connection_stays_after_any_other_error(db):
    before = _backend()
    with pytest.raises(InternalError):
        _fail("XX000")
    assert _backend() == before


def test_connection_is_given_up_within_a_transaction(db):
    before = _backend()
    with pytest.raises(OperationalError), transaction.atomic(), transaction.atomic():
        _fail("25006")
    assert _backend() != before


def test_lent_connection_is_given_up(db, superuser):
    connection.close()
    with pytest.raises(OperationalError) as refused:
        statements.first("DO $$ BEGIN RAISE EXCEPTION '%%', pg_backend_pid() USING ERRCODE = '25006'; END $$", [])
    process = int(str(refused.value).split()[0])
    waiting.until(lambda: not superuser.execute("SELECT 1 FROM pg_stat_activity WHERE pid = %s", [process]).fetchone())


def _look(columns):
    with statements.cursor() as cursor:
        cursor.execute(f"SELECT {columns} FROM looked_at")
        return cursor.fetchall()


def test_statement_prepared_before_a_column_changed_costs_one_error(db, superuser):
    superuser.execute("CREATE TABLE looked_at (a int); GRANT SELECT ON looked_at TO roundhouse_app")
    try:
        assert _look("*") == []
        superuser.execute("ALTER TABLE looked_at ALTER a TYPE text")
        with pytest.raises(OperationalError, match="cached plan"):
            _look("*")
        assert _look("*") == []
    finally:
        superuser.execute("DROP TABLE looked_at")


def test_statements_lost_by_the_session_cost_one_error(db):
    with statements.cursor() as cursor:
        cursor.execute("SELECT 1")
        assert isinstance(connection.connection, psycopg.Connection)
        connection.connection.pgconn.exec_(b"DEALLOCATE ALL")  # as psycopg's own `execute`, it would be noticed
    with pytest.raises(OperationalError), statements.cursor() as cursor:
        cursor.execute("SELECT 1")
    with statements.cursor() as cursor:
        cursor.execute("SELECT 1")
        assert cursor.fetchone() == (1,)
