"""A task in a worker: run when its job is due, its end noted, and an outage of PostgreSQL told once."""

import json
from datetime import timedelta

import pytest
from django.db import IntegrityError, OperationalError, connection, transaction
from django.db.models.functions import Now

from fleet import jobs

SWEEP = "engines.tasks.sweep"
ROLE = "roundhouse_app"


def lines(caplog):
    """Our log lines as objects."""
    return [record.msg for record in caplog.records if isinstance(record.msg, dict)]


def test_task_of_a_job_runs_only_when_the_job_is_due(rows):
    ran = []
    for _ in range(3):
        jobs.carry_out(SWEEP, lambda: ran.append(1))
    assert len(ran) == 1
    rows.filter(name="reconcile").update(started_at=Now() - timedelta(seconds=30))
    jobs.carry_out(SWEEP, lambda: ran.append(1))
    assert len(ran) == 2
    assert rows.get(name="reconcile").outcome == "done"


def test_other_task_always_runs(rows):
    ran = []
    for _ in range(2):
        jobs.carry_out("engines.tasks.run_operation", lambda: ran.append(1))
    assert len(ran) == 2


def test_job_that_fails_says_so_and_raises(rows):
    def fail():
        raise IntegrityError("a bug")

    with pytest.raises(IntegrityError):
        jobs.carry_out(SWEEP, fail)
    row = rows.get(name="reconcile")
    assert (row.outcome, row.done_at, row.ended_at is None) == ("failed", None, False)


def test_statement_stopped_at_its_time_limit_is_a_failure_and_no_outage(rows):
    def take_long():
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SET LOCAL statement_timeout = '1ms'")
            cursor.execute("SELECT pg_sleep(1)")

    with pytest.raises(OperationalError):
        jobs.carry_out(SWEEP, take_long)
    assert rows.get(name="reconcile").outcome == "failed"


def test_task_while_postgresql_is_away_is_dropped_with_one_line(rows, superuser, caplog):
    def look():
        connection.close()
        connection.ensure_connection()

    superuser.execute(f"ALTER ROLE {ROLE} NOLOGIN")
    try:
        superuser.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", [ROLE])
        connection.close()
        connection.pool.drain()
        connection.pool.timeout, usual = 0.6, connection.pool.timeout
        for task in (SWEEP, "engines.tasks.run_operation"):
            jobs.carry_out(task, look)
    finally:
        superuser.execute(f"ALTER ROLE {ROLE} LOGIN")
        connection.pool.timeout = usual
    told = [line for line in lines(caplog) if line["event"] == "dependency_away"]
    assert [line["dependency"] for line in told] == ["postgresql"], json.dumps(told)
