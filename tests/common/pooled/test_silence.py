"""A server that takes connections and statements, and answers nothing."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from django.db import OperationalError, connection

from common.pooled.silence import ANSWER_S, PATIENCE_S, Doubt, Silent
from tests import pgbouncer, servers, waiting
from tests.freezing import frozen_postgres


def _ask():
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")


def _doubt(url):
    return Doubt({"conninfo": url, "autocommit": True})


def test_statement_ends_while_the_server_is_silent(db):
    """PgBouncer answers the log-in even then, so only a statement shows what is behind it."""
    _ask()
    with pgbouncer.running() as url, ThreadPoolExecutor() as threads:
        began = waiting.now()
        with frozen_postgres():
            behind_pooler = threads.submit(_doubt(url).is_confirmed, PATIENCE_S)
            with pytest.raises(OperationalError) as refused:
                _ask()
            assert isinstance(refused.value.__cause__, Silent)
            assert waiting.now() - began < PATIENCE_S + ANSWER_S + 2
            assert behind_pooler.result()
    _ask()


def test_slow_statement_goes_on_while_the_server_answers_others(db):
    assert not _doubt(servers.SERVERS.urls.database).is_confirmed(PATIENCE_S)
