"""Beat as a process: what it sends by whose clock, and what it logs."""

import contextlib
import json
from datetime import datetime, timedelta
from pathlib import Path
from threading import Event, Thread

import pytest
from django.conf import settings
from django.db.models import F
from django.db.models.functions import Now

from common import times, valkey
from fleet.jobs import all_jobs, ticker
from tests import waiting
from tests.freezing import frozen_valkey
from tests.stack import Stack

FAKETIME = next(iter(Path("/usr/lib").glob("*/faketime/libfaketime.so.1")), None)
OFTEN = [job.name for job in all_jobs() if job.every_s <= 30 and not job.task.startswith("audit.")]  # done by `health`


def stack_with_clock(offset):
    """A stack whose processes have a clock that is wrong by `offset`. Lengths of time are right: the clock was only set."""
    if FAKETIME is None:
        pytest.skip("needs libfaketime (apt install libfaketime)")
    faked = {"LD_PRELOAD": str(FAKETIME), "FAKETIME": offset, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    return contextlib.closing(Stack("small", execute=True, ORCH_ENGINE_BACKEND="memory", ORCH_LOG_LEVEL="INFO", **faked))


def wrong_by(stack, name):
    """How far the clock of the process is from the database's, by the line with which its beat begins; None before the line.

    The line may share a line of the file: `time.sleep` fails under libfaketime, and the thread of the stall watch says so.
    """
    found = [json.loads(line[line.index("{") :]) for line in stack.log(name).splitlines() if '"beat_ready"' in line]
    return datetime.fromisoformat(found[0]["timestamp"]) - times.database_now() if found else None


@pytest.mark.deployment
def test_clocks_of_two_workers_with_beat_change_nothing(rows):
    with stack_with_clock("+2d") as ahead, stack_with_clock("-2d") as behind:
        ahead.start("worker")
        behind.start("worker.2")
        for stack, name in ((ahead, "worker"), (behind, "worker.2")):
            wrong = waiting.until(lambda stack=stack, name=name: wrong_by(stack, name), 60, "its beat has begun")
            assert timedelta(days=1) < abs(wrong) < timedelta(days=3)
        waiting.until(lambda: rows.filter(name__in=OFTEN, outcome="done").count() == len(OFTEN), 30, "all were done")
        again = rows.filter(name__in=("confine-engines", "write-refusals"))
        once = list(again.values_list("started_at", flat=True))
        waiting.until(lambda: not again.filter(started_at__in=once).exists(), 15, "and again")
        assert not rows.filter(started_at__gt=Now()).exists()


@pytest.fixture
def beat(rows):
    """Starts beat as a thread of this process; ends it after the test."""
    stopping = Event()
    threads = []

    def start():
        threads.append(Thread(target=ticker.tick, args=(stopping,), daemon=True))
        threads[-1].start()

    yield start
    stopping.set()
    for thread in threads:
        thread.join(10)


def queued():
    client = valkey.client()
    return client.llen("health") + client.llen("keeper")


def test_two_beats_send_each_job_once(rows, beat):
    rows.exclude(name__in=OFTEN[:3]).update(started_at=Now())
    beat()
    beat()
    waiting.until(lambda: not rows.filter(name__in=OFTEN[:3], sent_at=None).exists(), 5, "all are sent")
    since = waiting.now()
    waiting.until(lambda: waiting.passed(since, 1), 2)  # several looks of each
    assert queued() == 3


def test_jobs_are_sent_soon_after_valkeys_return_and_the_outage_is_told_once(rows, beat, caplog):
    with frozen_valkey():
        beat()
        waiting.until(lambda: told(caplog, "dependency_away"), 10, "beat has noticed")
        since = waiting.now()
        waiting.until(lambda: waiting.passed(since, 1.2), 4)  # beat tries again and again
    waiting.until(lambda: not rows.filter(sent_at=None).exists(), 5, "all are sent")
    waiting.until(lambda: told(caplog, "dependency_back"), 8, "the return is told")
    assert [line["dependency"] for line in told(caplog, "dependency_away", "dependency_back")] == ["valkey"] * 2
    assert [record for record in caplog.records if record.exc_info] == []


def told(caplog, *events):
    return [record.msg for record in caplog.records if isinstance(record.msg, dict) and record.msg["event"] in events]


def test_database_of_another_deployment_is_told_once_and_its_return(own_database, as_deployment, caplog):
    usual, ownership = settings.ENV.deployment, ticker._Ownership()
    ownership.look()
    as_deployment("staging")
    ownership.look()
    ownership.look()
    (line,) = told(caplog, "database_not_ours")
    assert line["fault"].startswith("this database belongs to the deployment")
    as_deployment(usual)
    ownership.look()
    ownership.look()
    assert len(told(caplog, "database_ours_again", "database_not_ours")) == 2


def test_late_job_is_told_once_and_its_return(rows, caplog):
    rows.filter(name="reconcile").update(added_at=F("added_at") - timedelta(days=1))
    rows.exclude(name="reconcile").update(added_at=Now())
    lateness = ticker._Lateness()

    def look():
        lateness._next -= ticker.LOOK_S  # the time passes
        lateness.look()

    lateness.look()
    assert told(caplog, "job_late") == []  # after the start, jobs have the time to run
    look()
    look()
    assert [(line["job"], line["done_at"]) for line in told(caplog, "job_late")] == [("reconcile", None)]
    rows.filter(name="reconcile").update(done_at=Now())
    look()
    look()
    assert [line["job"] for line in told(caplog, "job_done_again")] == ["reconcile"]
