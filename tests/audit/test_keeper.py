"""Beat, keeper and database together: what has expired leaves without anybody's doing."""

import contextlib
import json
from datetime import timedelta
from pathlib import Path

import pytest
from django.db.models.functions import Now

from audit import trail
from audit.actions import Action
from audit.actors import SYSTEM
from audit.models import AuditRow
from config.local import postgres
from fleet.jobs.models import Job
from tests import waiting
from tests.stack import Stack

OLD = -14  # months; kept for a year


@pytest.fixture
def stack(db):
    with contextlib.closing(Stack(execute=True, ORCH_LOG_LEVEL="INFO")) as processes:
        yield processes


@pytest.fixture
def keeper_was_away(db):
    """Pruning was last done before the present interval: beat and keeper were away for longer."""
    Job.objects.update(sent_at=None, unstarted=0, started_at=Now() - timedelta(hours=7))


def test_expired_month_leaves_by_beat_and_keeper(stack, months, as_app, superuser, keeper_was_away):
    months.lay_out(OLD, 3)
    trail.record(Action.START, by=SYSTEM, started=months.at(OLD))
    stack.start("keeper")
    waiting.until(lambda: "worker_ready" in stack.log("keeper"), 60, "the keeper takes messages")
    with as_app.transaction():  # a reader, for whose end the keeper waits: meanwhile it can be seen
        as_app.execute("SELECT count(*) FROM audit_log")
        stack.start("beat")
        waiting.until(lambda: detaching(superuser), 30, "a month is being detached")
        assert detaching(superuser) == [(postgres.OWNER, "keeper")]
    waiting.until(lambda: runs().exists(), 30, "the run's row is there")
    row = runs().get()
    assert months.name(OLD) in row.metadata["partitions"]
    assert (row.metadata["rows"], row.metadata["postponed"], row.actor) == (1, [], "system")
    assert months.name(OLD) not in months.tables()
    waiting.until(lambda: [line for line in pruned(stack) if line["rows"] == 1], 10, "the keeper's log says so")
    waiting.until(lambda: Job.objects.get(name="prune-history").outcome == "done", 10, "the job's row says so")
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
