"""The libraries of our processes, imported once in the supervisor, which then forks into the processes.

The start of a process takes two seconds of processor time, nearly all for imports. Imports before a fork cost the fork no time,
and no memory until a process writes to their pages. No code here may read our settings, open a file or start a thread.
"""

import gc
import importlib
import threading
from collections.abc import Iterable

# Needed by `prepare` and `web`, which start first.
FIRST = (
    "celery.app.amqp",
    "celery.fixups.django",
    "common.env",  # imports pydantic; only calling the class `Env` reads the environment
    "csp.middleware",
    "cryptography.fernet",
    "dj_database_url",
    "django.contrib.admin.options",
    "django.contrib.admin.templatetags.admin_list",
    "django.contrib.postgres.apps",
    "django.core.management.commands.migrate",
    "django.core.wsgi",
    "django.db.backends.postgresql.base",
    "django.test",  # drf_spectacular needs django.test and the next three
    "inflection",
    "uritemplate",
    "yaml",
    "django_filters",
    "drf_spectacular.utils",
    "gunicorn.app.wsgiapp",
    "gunicorn.workers.gthread",
    "kombu.transport.redis",
    "limits.strategies",
    "psycopg_pool",
    "redis",
    "requests",
    "rest_framework",
    "structlog",
    "whitenoise.middleware",
)
# Needed only by workers.
REST = (
    "celery.app.log",
    "celery.apps.worker",
    "celery.concurrency.thread",
    "celery.worker.consumer",
    "docker",
    "h11",
)


def load(modules: Iterable[str] = (*FIRST, *REST)) -> None:
    """Import `modules`, and keep the garbage collector from writing to their objects. Raises ImportError, RuntimeError."""
    gc.disable()  # imports leave hardly any garbage, and collecting takes a tenth of the time
    for name in modules:
        importlib.import_module(name)
    if threading.active_count() > 1:
        raise RuntimeError(f"a library has started a thread, and threads do not survive a fork: {threading.enumerate()}")
    gc.freeze()
    gc.enable()
