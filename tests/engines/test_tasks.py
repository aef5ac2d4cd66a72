"""The tasks that are sent by name are there under that name."""

import pytest

from config.celery import app
from engines.api import logs
from engines.operations import queues
from fleet import jobs


@pytest.mark.parametrize("name", [queues.TASK, logs.TASK])
def test_task_that_is_sent_by_name_is_registered(name):
    app.loader.import_default_modules()
    assert name in app.tasks


def test_task_of_each_periodic_job_is_registered():
    app.loader.import_default_modules()
    assert {job.task for job in jobs.all_jobs()} <= app.tasks.keys()
