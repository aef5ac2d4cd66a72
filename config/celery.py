"""The Celery app, for all processes that send or run tasks; `config.worker` starts Celery's own processes."""

import os
from typing import Any

import structlog
from celery import Celery
from celery.signals import before_task_publish, setup_logging, task_postrun, task_prerun
from django.conf import settings

from common import context
from config import broker

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
broker.install()

app = Celery("roundhouse")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks(lambda: [floor for floor in ("engines", "policy", "audit") if floor in settings.INSTALLED_APPS])


@setup_logging.connect
def keep_our_logging(**_: Any) -> None:
    """Keep Celery from adding handlers to the root logger, which `config.settings` has configured already."""


@before_task_publish.connect
def send_request_id(headers: dict[str, Any], **_: Any) -> None:
    """Send the current request's id with every task: the worker logs the id in all lines of the task, Celery's included."""
    headers["request_id"] = context.request_id.get()


@task_prerun.connect
def bind_request_id(task: Any, **_: Any) -> None:
    """Name the request in the log lines of the task, and in nothing else: whoever reaches Valkey could have written the header.

    The audit rows of an operation take the request's id from the operation's row (`engines.worker.run`).
    """
    structlog.contextvars.clear_contextvars()
    context.request_id.set(None)
    said = task.request.get("request_id")
    if isinstance(said, str) and context.REQUEST_ID.fullmatch(said):
        structlog.contextvars.bind_contextvars(request_id=said)


@task_postrun.connect
def unbind_request_id(**_: Any) -> None:
    structlog.contextvars.clear_contextvars()
    context.request_id.set(None)
