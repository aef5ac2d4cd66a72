"""The libraries that our processes are made of, imported once in a process that then forks into each of them.

A process of ours takes two seconds of processor time to start, nearly all of it imports; what was imported before a fork costs
neither time nor, as far as nobody writes to it, memory. Nothing here may read our settings, open a file or start a thread.
"""

import gc
import importlib
import threading
from collections.abc import Iterable

# Needed by `prepare` and `web`, which come first ...
FIRST = (
    "celery.app.amqp",
    "celery.fixups.django",
    "common.env",  # the class of the settings, and with it pydantic; it reads the environment when it is called
    "csp.middleware",
    "cryptography.fernet",
    "dj_database_url",
    "django.contrib.admin.options",
    "django.contrib.admin.templatetags.admin_list",
    "django.contrib.postgres.apps",
    "django.core.management.commands.migrate",
    "django.core.wsgi",
    "django.db.backends.postgresql.base",
    "django.test",  # drf_spectacular needs it and the next three
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
# ... and what only workers need.
REST = (
    "aiohttp",
    "celery.app.log",
    "celery.apps.beat",
    "celery.apps.worker",
    "celery.concurrency.thread",
    "celery.worker.consumer",
    "docker",
)


def load(modules: Iterable[str] = (*FIRST, *REST)) -> None:
    """Import them, and keep the garbage collector from writing to what they have made. Raises ImportError, RuntimeError."""
    gc.disable()  # imports make hardly any garbage, and looking for it takes a tenth of the time
    for name in modules:
        importlib.import_module(name)
    if threading.active_count() > 1:
        raise RuntimeError(f"a library has started a thread, which no fork would have: {threading.enumerate()}")
    gc.freeze()
    gc.enable()
