"""Beat, keeper and database together: what has expired leaves without anybody's doing."""

import contextlib
import json
from datetime import timedelta
from pathlib import Path

import pytest
from celery.beat import PersistentScheduler

from audit import trail
from audit.actions import Action
from audit.actors import SYSTEM
from audit.models import AuditRow
from config.celery import app
from config.local import postgres
from tests import servers, waiting
from tests.stack import Stack

OLD = -14  # months; kept for a year


@pytest.fixture
def stack(db):
    with contextlib.closing(Stack(execute=True, ORCH_LOG_LEVEL="INFO")) as processes:
        yield processes


@pytest.fixture
def beat_was_away():
    """Beat's memory, as one has left it that ended before the last pruning was due."""
    path = servers.HOME / "beat-schedule"
    scheduler = PersistentScheduler(app, schedule_filename=str(path))
    scheduler.schedule["prune-history"].last_run_at -= timedelta(hours=7)
    scheduler.close()
    yield
    for file in path.parent.glob("beat-schedule*"):
        file.unlink()


def test_expired_month_leaves_by_beat_and_keeper(stack, months, as_app, superuser, beat_was_away):
    stack.start("keeper")
    waiting.until(lambda: runs(), 30, "the keeper has caught up with what it missed")
    months.lay_out(OLD, 3)
    trail.record(Action.START, by=SYSTEM, started=months.at(OLD))
    before = runs().count()
    with as_app.transaction():  # a reader, for whose end the keeper waits: meanwhile it can be seen
        as_app.execute("SELECT count(*) FROM audit_log")
        stack.start("beat")
        waiting.until(lambda: detaching(superuser), 30, "a month is being detached")
        assert detaching(superuser) == [(postgres.OWNER, "keeper")]
    waiting.until(lambda: runs().count() > before, 30, "the run's row is there")
    row = runs().latest("id")
    assert months.name(OLD) in row.metadata["partitions"]
    assert (row.metadata["rows"], row.metadata["postponed"], row.actor) == (1, [], "system")
    assert months.name(OLD) not in months.tables()
    waiting.until(lambda: [line for line in pruned(stack) if line["rows"] == 1], 10, "the keeper's log says so")
    assert has_owner(stack, "keeper")
    assert not has_owner(stack, "beat")


def runs():
    return AuditRow.objects.filter(action=Action.RETENTION_PRUNE)


def detaching(superuser):
    """Who detaches a partition just now: role, and the name of the process."""
    found = superuser.execute(
        "SELECT usename, application_name FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'ALTER TABLE audit_log%'"
    )
    return found.fetchall()


def pruned(stack):
    lines = [json.loads(line) for line in stack.log("keeper").splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == "retention_pruned"]


def has_owner(stack, name):
    """Whether a process was given the owner's role."""
    environ = Path(f"/proc/{stack.pid(name)}/environ").read_bytes().split(b"\0")
    return any(entry.startswith(b"ORCH_DATABASE_OWNER_URL=postgres") for entry in environ)
