"""Periodic jobs in the admin."""

from datetime import timedelta

import pytest
from django.db.models.functions import Now

from tests.staff import log_in

VIEW = "jobs.view_job"
LIST, PAGE, OVERVIEW = "/admin/jobs/job/", "/admin/jobs/job/reconcile/change/", "/admin/"


@pytest.fixture
def late(rows):
    """`reconcile` is late although it ran a moment ago, because that run failed; the other jobs were done."""
    rows.update(started_at=Now(), ended_at=Now(), done_at=Now(), outcome="done")
    rows.filter(name="reconcile").update(done_at=Now() - timedelta(days=1), outcome="failed")
    return rows.get(name="reconcile")


def test_list_tells_when_each_job_ran_and_which_is_late(late, rows):
    rows.create(name="of-another-version")
    try:
        response = log_in("rita", VIEW).get(LIST)
    finally:
        rows.filter(name="of-another-version").delete()
    states = {job.name: job.now for job in response.context["cl"].result_list}
    assert states.pop("reconcile") == "late"
    assert set(states.values()) == {"done"}
    assert "of-another-version" not in states
    assert "6 h" in response.text


def test_page_of_a_job_tells_its_times(late):
    text = log_in("rita", VIEW).get(PAGE).text
    assert f"{late.done_at:%Y-%m-%d %H:%M:%S}" in text
    assert "late" in text


def test_overview_names_late_jobs_to_whoever_may_see_jobs(late, rows):
    assert "reconcile" not in log_in("mona").get(OVERVIEW).text
    client = log_in("rita", VIEW)
    assert f"reconcile (last done {late.done_at:%Y-%m-%d %H:%M:%S})" in client.get(OVERVIEW).text
    rows.update(done_at=Now())
    assert "Late:" not in client.get(OVERVIEW).text
