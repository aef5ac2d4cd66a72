"""The Celery app: five queues, each its own process, and what beat sends to them."""

import os
from typing import Any

import structlog
from celery import Celery
from celery.signals import before_task_publish, setup_logging, task_postrun, task_prerun, worker_init, worker_ready
from django.conf import settings

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")

app = Celery("roundhouse")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks(["engines", "policy", "audit"])


@setup_logging.connect
def keep_our_logging(**_: Any) -> None:
    """Celery would put its own handlers on the root logger; settings have configured it already."""


@before_task_publish.connect
def send_request_id(headers: dict[str, Any], **_: Any) -> None:
    """What a request has done travels with its id, and every line of it in a worker's log carries that, Celery's included."""
    headers["request_id"] = structlog.contextvars.get_contextvars().get("request_id")


@task_prerun.connect
def bind_request_id(task: Any, **_: Any) -> None:
    structlog.contextvars.clear_contextvars()
    if request_id := task.request.get("request_id"):
        structlog.contextvars.bind_contextvars(request_id=request_id)


@task_postrun.connect
def unbind_request_id(**_: Any) -> None:
    structlog.contextvars.clear_contextvars()


@worker_init.connect
def join(**_: Any) -> None:
    """Who probes or boots engines has to reach them from the first message on, or would take them for dead.

    Who judges them resumes those first that died while nobody was there: they have not failed.
    """
    process = os.environ.get("ORCH_PROCESS")
    if process in (*settings.OPERATION_WORKERS, "health"):
        from engines import reconcile

        reconcile.join()
        if process == "health":
            reconcile.begin()


@worker_ready.connect
def begin(sender: Any, **_: Any) -> None:
    """A worker of operations ends itself when it goes deaf (see engines.leases); `keeper` catches up with what it missed."""
    process = os.environ.get("ORCH_PROCESS")
    if process in settings.OPERATION_WORKERS:
        from engines import leases

        leases.watch(*settings.OPERATION_WORKERS[process])
    elif process == "keeper":
        for task in ("audit.tasks.make_partitions", "audit.tasks.prune"):
            app.send_task(task)
