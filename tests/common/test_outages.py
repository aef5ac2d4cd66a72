"""Outages of PostgreSQL and Valkey: a line when one begins, and one when it is over."""

import logging

import pytest
from django.db import Error, InterfaceError, OperationalError, ProgrammingError, connection, transaction

from common import outages
from common.outages import POSTGRESQL, QUIET_S, VALKEY, Dependency


def told(caplog):
    return [(record.msg["event"], record.msg["dependency"]) for record in caplog.records if isinstance(record.msg, dict)]


def test_outage_is_told_once_and_its_end_once(caplog):
    server = Dependency("a server")
    server.answered()
    for _ in range(3):
        server.failed("no route")
    assert server.is_away
    assert told(caplog) == [("dependency_away", "a server")]
    server.answered()
    assert server.is_away  # a success so soon after a failure is no return
    server._failed_at -= QUIET_S
    for _ in range(3):
        server.answered()
    assert not server.is_away
    assert told(caplog) == [("dependency_away", "a server"), ("dependency_back", "a server")]


@pytest.mark.parametrize(
    ("logger", "line", "dependency"),
    [
        ("psycopg.pool", "error connecting in 'pool-1': connection refused", POSTGRESQL),
        ("psycopg.pool", "reconnection attempt in pool 'pool-1' failed after 1 sec", POSTGRESQL),
        ("celery.worker.consumer.consumer", "consumer: Cannot connect to redis://: refused.", VALKEY),
        ("celery.worker.consumer.consumer", "consumer: Connection to broker lost. Trying to re-establish (x)", VALKEY),
    ],
)
def test_lines_of_libraries_about_an_outage_become_one(caplog, logger, line, dependency):
    dependency._since = None
    try:
        for _ in range(3):
            logging.getLogger(logger).error(line)
        logging.getLogger(logger).error("something else")
        logging.getLogger(logger).warning("discarding closed connection: <psycopg.Connection [BAD]>")
        assert dependency.is_away
        assert [record.getMessage() for record in caplog.records if record.name == logger] == ["something else"]
        assert len(told(caplog)) == 1
    finally:
        dependency._since = None


@pytest.mark.parametrize("statement", ["SELECT nothing", "SELECT pg_sleep(1)", "SELECT 1/0"])
def test_error_of_a_statement_is_no_outage(db, statement):
    def run():
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SET LOCAL statement_timeout = '1ms'")
            cursor.execute(statement)

    with pytest.raises(Error) as error:
        run()
    assert not outages.is_away(error.value)


@pytest.mark.parametrize("made", [OperationalError("no connection"), InterfaceError("the connection is closed")])
def test_lack_of_a_connection_is_an_outage(made):
    assert outages.is_away(made)
    assert not outages.is_away(ProgrammingError("no such table"))
    assert not outages.is_away(ValueError("a bug"))


def test_database_that_ends_the_session_or_refuses_writes_is_away(db, superuser):
    with connection.cursor() as cursor:
        cursor.execute("SET default_transaction_read_only = on")
        with pytest.raises(Error) as refused:
            cursor.execute("DELETE FROM engines_host")
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        superuser.execute("SELECT pg_terminate_backend(%s)", cursor.fetchone())
        with pytest.raises(Error) as ended:
            cursor.execute("SELECT 1")
    connection.close()
    assert outages.is_away(refused.value)
    assert outages.is_away(ended.value)
