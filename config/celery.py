"""The Celery app: three queues, each its own process, and what beat sends to them."""

import os
from typing import Any

from celery import Celery
from celery.signals import setup_logging, worker_ready

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")

app = Celery("roundhouse")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks(["engines", "policy", "audit"])


@setup_logging.connect
def keep_our_logging(**_: Any) -> None:
    """Celery would put its own handlers on the root logger; settings have configured it already."""


@worker_ready.connect
def begin(sender: Any, **_: Any) -> None:
    """`ops` ends itself when it stops consuming (see engines.leases); `keeper` catches up with what it missed."""
    process = os.environ.get("ORCH_PROCESS")
    if process == "ops":
        from engines import leases

        leases.watch()
    elif process == "keeper":
        for task in ("audit.tasks.make_partitions", "audit.tasks.prune"):
            app.send_task(task)
