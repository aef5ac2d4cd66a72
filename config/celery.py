"""The Celery app: three queues, each its own process, and what beat sends to them."""

import os
from typing import Any

from celery import Celery
from celery.signals import setup_logging, worker_ready

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")

app = Celery("roundhouse")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks(["engines", "audit"])


@setup_logging.connect
def keep_our_logging(**_: Any) -> None:
    """Celery would put its own handlers on the root logger; settings have configured it already."""


@worker_ready.connect
def watch_for_stalls(sender: Any, **_: Any) -> None:
    """The `ops` worker ends itself when it stops consuming; see engines.leases."""
    if os.environ.get("ORCH_PROCESS") == "ops":
        from engines import leases

        leases.watch()
