"""When periodic jobs are due: the table decides, by the database's clock."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from django.conf import settings
from django.core.management import call_command
from django.db import connection
from django.db.models import F
from django.db.models.functions import Now

from fleet.jobs import all_jobs, late, runs
from fleet.jobs.models import Job

NAMES = [job.name for job in all_jobs()]
SWEEP = next(job for job in all_jobs() if job.name == "reconcile")
PRUNE = next(job for job in all_jobs() if job.name == "prune-history")


def take():
    return sorted(job.name for job in runs.take_due())


def shift(name, **seconds):
    """Move times of a job into the past, as if the seconds had gone by; negative ones move it into the future."""
    moved = {f"{column}_at": F(f"{column}_at") - timedelta(seconds=by) for column, by in seconds.items()}
    assert Job.objects.filter(name=name).update(**moved) == 1


def do(job, *, is_done=True):
    assert runs.begin(job)
    runs.end(job, is_done=is_done)


def test_new_jobs_are_due_at_once_and_taken_once(rows):
    assert take() == sorted(NAMES)
    assert take() == []


def test_many_beats_at_once_take_each_job_once(rows):
    def ask(_):
        try:
            return take()
        finally:
            connection.close()

    with ThreadPoolExecutor(8) as pool:
        taken = [name for names in pool.map(ask, range(24)) for name in names]
    assert sorted(taken) == sorted(NAMES)


def test_job_begins_once_per_interval_however_many_messages_there_are(rows):
    assert [runs.begin(SWEEP) for _ in range(3)] == [True, False, False]
    shift(SWEEP.name, started=SWEEP.every_s - 1)
    assert not runs.begin(SWEEP)
    shift(SWEEP.name, started=1)
    assert SWEEP.name in take()
    assert runs.begin(SWEEP)


def test_job_whose_worker_was_killed_is_due_again_soon(rows):
    """The run before has ended; that of the killed worker has not."""
    do(PRUNE)
    shift(PRUNE.name, started=PRUNE.every_s, ended=PRUNE.every_s)
    assert runs.begin(PRUNE)
    shift(PRUNE.name, started=runs.UNENDED_S - 1)
    assert (PRUNE.name in take(), runs.begin(PRUNE)) == (False, False)
    shift(PRUNE.name, started=1)
    assert PRUNE.name in take()
    assert runs.begin(PRUNE)
    runs.end(PRUNE, is_done=True)
    shift(PRUNE.name, started=runs.UNENDED_S, ended=runs.UNENDED_S)
    assert not runs.begin(PRUNE)


def test_job_without_an_end_waits_for_an_interval_that_is_shorter(rows):
    assert runs.begin(SWEEP)
    shift(SWEEP.name, started=SWEEP.every_s - 1)
    assert not runs.begin(SWEEP)
    shift(SWEEP.name, started=1)
    assert runs.begin(SWEEP)


@pytest.mark.parametrize("job", [SWEEP, PRUNE], ids=["30 s", "6 h"])
def test_job_that_nobody_began_is_sent_again_with_growing_pauses(rows, job):
    """Beat died before it had sent the message, Valkey lost it, or all workers are away."""
    assert job.name in take()
    pauses = [30.0, 60.0, 60.0] if job is SWEEP else [30.0, 60.0, 120.0]
    for pause in pauses:
        shift(job.name, sent=pause - 1)
        assert job.name not in take()
        shift(job.name, sent=1)
        assert job.name in take()
    assert rows.get(name=job.name).unstarted == len(pauses) + 1
    assert runs.begin(job)
    assert rows.get(name=job.name).unstarted == 0
    shift(job.name, started=job.every_s)
    assert job.name in take()


def test_pauses_of_a_rare_job_end_at_its_interval(rows):
    rows.filter(name=PRUNE.name).update(unstarted=2**31 - 2, sent_at=Now() - timedelta(seconds=PRUNE.every_s - 1))
    assert PRUNE.name not in take()
    shift(PRUNE.name, sent=1)
    assert PRUNE.name in take()


def test_jobs_that_could_not_be_sent_are_taken_again_at_once(rows):
    taken = runs.take_due()
    runs.give_back(taken[3:])
    assert take() == sorted(job.name for job in taken[3:])


@pytest.mark.parametrize("column", ["started", "sent"])
def test_time_in_the_future_holds_no_job_up(rows, column):
    """The database's own clock was ahead for a while, or another server took over."""
    take()
    assert runs.begin(SWEEP)
    shift(SWEEP.name, started=SWEEP.every_s)
    take()
    shift(SWEEP.name, **{column: -2 * 86_400})
    if column == "started":
        shift(SWEEP.name, sent=60)
    assert SWEEP.name in take()
    assert SWEEP.name not in take()
    assert runs.begin(SWEEP)
    assert not runs.begin(SWEEP)


def test_changed_interval_holds_at_once(rows, settings):
    """Both for a longer one, and where two versions run side by side for a while."""
    probe = next(job for job in all_jobs() if job.task.endswith("probe_due"))
    assert runs.begin(probe)
    settings.ENV = settings.ENV.model_copy(update={"health_check_interval_s": 1.0})
    faster = next(job for job in all_jobs() if job.task.endswith("probe_due"))
    assert faster.every_s == 0.5
    shift(probe.name, started=faster.every_s)
    assert not runs.begin(probe)
    assert runs.begin(faster)


def test_next_look_is_when_the_next_job_is_to_be_sent(rows):
    assert runs.next_s() == 0
    for job in all_jobs():
        do(job)
    shortest = min(job.every_s for job in all_jobs())
    assert shortest - 1 < runs.next_s() <= shortest
    shift(PRUNE.name, started=PRUNE.every_s - 0.5, ended=PRUNE.every_s - 0.5)
    assert 0 <= runs.next_s() <= 0.5
    rows.update(started_at=Now() - timedelta(days=9))
    assert runs.next_s() == 0


def test_nothing_is_due_in_a_database_of_another_deployment(rows, own_database, as_deployment):
    """As after a failover to a copy: neither beat nor a worker does anything there."""
    usual = settings.ENV.deployment
    as_deployment("staging")
    assert take() == []
    assert runs.next_s() is None
    assert not runs.begin(SWEEP)
    assert set(rows.values_list("sent_at", "started_at")) == {(None, None)}
    as_deployment(usual)
    assert SWEEP.name in take()
    assert runs.begin(SWEEP)


def test_migrate_adds_new_jobs_and_leaves_those_of_other_versions(rows):
    rows.update(added_at=Now())
    rows.create(name="of-another-version", done_at=Now() - timedelta(days=9))
    try:
        rows.filter(name=SWEEP.name).delete()
        assert [job.name for job in late()] == [SWEEP.name]
        call_command("migrate", verbosity=0)
        assert late() == []
        assert "of-another-version" not in take()
        assert rows.filter(name="of-another-version").exists()
    finally:
        rows.filter(name="of-another-version").delete()


def test_job_is_late_until_a_run_has_ended_without_an_error(rows):
    rows.update(added_at=Now())
    shift(SWEEP.name, added=2 * SWEEP.every_s + runs.LATE_S - 5)
    assert late() == []
    shift(SWEEP.name, added=6)
    assert [(job.name, job.done_at) for job in late()] == [(SWEEP.name, None)]
    do(SWEEP, is_done=False)
    assert rows.get(name=SWEEP.name).outcome == "failed"
    assert [job.name for job in late()] == [SWEEP.name]
    shift(SWEEP.name, started=SWEEP.every_s)
    do(SWEEP)
    assert late() == []
    row = rows.get(name=SWEEP.name)
    assert (row.outcome, row.done_at, row.started_at < row.ended_at) == ("done", row.ended_at, True)
    shift(SWEEP.name, done=2 * SWEEP.every_s + runs.LATE_S + 1)
    assert [(job.name, job.done_at) for job in late()] == [(SWEEP.name, rows.get(name=SWEEP.name).done_at)]
