import pytest

from fleet.jobs.models import Job

NEW = {"sent_at": None, "unstarted": 0, "started_at": None, "ended_at": None, "done_at": None, "outcome": ""}


@pytest.fixture
def rows(db):
    """The rows of all jobs, as `migrate` has added them."""
    Job.objects.update(**NEW)
    return Job.objects
