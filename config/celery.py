"""The Celery app, as whoever sends a task needs it, too. What its own processes do beside their tasks is in `config.worker`."""

import os
from typing import Any

import structlog
from celery import Celery
from celery.signals import before_task_publish, setup_logging, task_postrun, task_prerun
from django.conf import settings

from common import context

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")

app = Celery("roundhouse")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks(lambda: [floor for floor in ("engines", "policy", "audit") if floor in settings.INSTALLED_APPS])


@setup_logging.connect
def keep_our_logging(**_: Any) -> None:
    """Celery would put its own handlers on the root logger; settings have configured it already."""


@before_task_publish.connect
def send_request_id(headers: dict[str, Any], **_: Any) -> None:
    """What a request has done travels with its id, and every line of it in a worker's log carries that, Celery's included."""
    headers["request_id"] = context.request_id.get()


@task_prerun.connect
def bind_request_id(task: Any, **_: Any) -> None:
    structlog.contextvars.clear_contextvars()
    context.request_id.set(task.request.get("request_id"))


@task_postrun.connect
def unbind_request_id(**_: Any) -> None:
    structlog.contextvars.clear_contextvars()
    context.request_id.set(None)
