"""The Celery app, for all processes that send or run tasks; `config.worker` starts Celery's own processes."""

import os
from functools import partial
from typing import Any
from uuid import uuid4

import structlog
from celery import Celery, Task as _Task
from celery.signals import before_task_publish, setup_logging, task_postrun, task_prerun
from django.conf import settings

from common import context
from config import broker
from fleet import jobs

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
broker.install()


_CelerysTask: Any = _Task  # generic in the types of Celery, and not when it runs


class Task(_CelerysTask):  # type: ignore[misc]
    """The base of all tasks. A task that comes as a message runs as `fleet.jobs` decides: a periodic job only once it is due."""

    abstract = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        work = partial(self.run, *args, **kwargs)
        return work() if self.request.called_directly else jobs.carry_out(self.name, work)


app = Celery("roundhouse", task_cls=Task, amqp=broker.Amqp, include=["config.tasks"])
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks(lambda: [floor for floor in ("engines", "policy", "audit") if floor in settings.INSTALLED_APPS])


@setup_logging.connect
def keep_our_logging(**_: Any) -> None:
    """Keep Celery from adding handlers to the root logger, which `config.settings` has configured already."""


@before_task_publish.connect
def send_ids(headers: dict[str, Any], **_: Any) -> None:
    """Send the ids of the call at hand with every task: the worker logs them in all lines of the task, Celery's included."""
    call = context.known()
    headers["request_id"] = call and call.request_id
    headers["call_id"] = call and str(call.call_id)


@task_prerun.connect
def begin_call(task: Any, **_: Any) -> None:
    """Begin a new call, and name the ids of the message in the log lines of the task, and in nothing else.

    The audit rows of the task never get an id from its message: whoever reaches Valkey can send messages. An operation's rows
    name the call that the operation's own row names.
    """
    context.enter(context.Call(uuid4()))
    structlog.contextvars.clear_contextvars()
    for name, form in (("request_id", context.REQUEST_ID), ("call_id", context.CALL_ID)):
        said = task.request.get(name)
        if isinstance(said, str) and form.fullmatch(said):
            structlog.contextvars.bind_contextvars(**{name: said})


@task_postrun.connect
def end_call(**_: Any) -> None:
    structlog.contextvars.clear_contextvars()
    context.enter(None)
