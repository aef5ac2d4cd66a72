"""A database that can be read and not written: no connection to it gets into the pool, and its return is noticed."""

import threading

import psycopg
import pytest
from django.db import OperationalError, connection

from common.pooled.errors import is_read_only
from tests import waiting
from tests.read_only import read_only


def _write():
    with connection.cursor() as cursor:
        cursor.execute("UPDATE engines_host SET name = name")


def test_request_waits_for_a_connection_that_can_write(db):
    returned = threading.Event()
    with read_only() as make_writable:
        back = threading.Timer(1.0, lambda: (returned.set(), make_writable()))
        back.start()
        _write()
        assert returned.is_set()
        back.join()


def test_error_says_read_only_after_the_time_of_the_pool(db):
    pool = connection.pool
    usual, pool.timeout = pool.timeout, 1.0
    try:
        with read_only(), pytest.raises(OperationalError, match="can be read, but not written") as refused:
            _write()
        assert is_read_only(refused.value)
    finally:
        pool.timeout = usual
    _write()


def test_living_sessions_of_a_demoted_server_are_given_up(db, superuser):
    connection.close()
    gate = threading.Barrier(6)

    def use():
        connection.cursor().execute("SELECT 1")
        gate.wait()
        connection.close()

    threads = [threading.Thread(target=use) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    superuser.execute("ALTER SYSTEM SET default_transaction_read_only = on")
    superuser.execute("SELECT pg_reload_conf()")
    try:
        waiting.until(lambda: _is_read_only(), what="the sessions have heard of it")
        with pytest.raises(OperationalError) as refused:
            _write()
        assert isinstance(refused.value.__cause__, psycopg.errors.ReadOnlySqlTransaction)
        waiting.until(lambda: _sessions(superuser) == 0, what="no connection is left")
    finally:
        superuser.execute("ALTER SYSTEM RESET default_transaction_read_only")
        superuser.execute("SELECT pg_reload_conf()")
    began = waiting.now()
    _write()
    assert waiting.now() - began < 5


def _is_read_only():
    with connection.cursor() as cursor:
        cursor.execute("SHOW transaction_read_only")
        return cursor.fetchone() == ("on",)


def _sessions(superuser):
    (number,) = superuser.execute("SELECT count(*) FROM pg_stat_activity WHERE usename = 'roundhouse_app'").fetchone()
    return number
