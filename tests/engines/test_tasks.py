"""The tasks that are sent by name are there under that name."""

import pytest

from config.celery import app
from engines.api import logs
from engines.operations import queues


@pytest.mark.parametrize("name", [queues.TASK, logs.TASK])
def test_task_that_is_sent_by_name_is_registered(name):
    app.loader.import_default_modules()
    assert name in app.tasks


def test_periodic_task_is_registered(settings):
    app.loader.import_default_modules()
    assert {entry["task"] for entry in settings.CELERY_BEAT_SCHEDULE.values()} <= app.tasks.keys()
