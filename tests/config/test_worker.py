"""Celery's processes as they are started: what each takes, with how many threads, and how it ends."""

import contextlib
import json
import os
import signal
import subprocess
import sys

import pytest

from config.local.home import BASE_DIR
from fleet.jobs.models import Job
from tests import waiting
from tests.stack import Stack

SHARES = {"ORCH_WAKE_CONCURRENCY": "2", "ORCH_OPS_CONCURRENCY": "3", "ORCH_BACKGROUND_CONCURRENCY": "1"}
TAKES = {"ops": (["lifecycle"], 3), "worker": (["background", "health", "lifecycle", "wake"], 2 + 3 + 1 + 5)}


@pytest.fixture
def stack(db):
    with contextlib.closing(Stack(**SHARES, ORCH_LOG_LEVEL="INFO")) as processes:
        yield processes


def taken(stack, name):
    """The queues and the number of threads with which the worker says that it is ready; None before that."""
    lines = [json.loads(line) for line in stack.log(name).splitlines() if '"worker_ready"' in line]
    return (lines[0]["queues"], lines[0]["threads"]) if lines else None


def test_workers_take_their_queues_with_their_threads_and_end_when_they_are_told(stack):
    Job.objects.update(sent_at=None, started_at=None)
    stack.start(*TAKES)
    for name, takes in TAKES.items():
        assert waiting.until(lambda name=name: taken(stack, name), 30, "it is ready") == takes
    waiting.until(lambda: not Job.objects.filter(sent_at=None).exists(), 10, "beat is in the worker")
    assert "beat_ready" in stack.log("worker")
    assert "beat_ready" not in stack.log("ops")
    for name in TAKES:
        process = stack.forget(name)
        os.kill(process.pid, signal.SIGTERM)
        process.join(15)
        assert process.exitcode == 0
    assert "beat_ended" not in stack.log("worker")


@pytest.mark.parametrize(("limit", "highest", "raised"), [(256, 9_000, 8_192), (256, 300, 300), (8_500, 9_000, 8_500)])
def test_worker_with_probes_may_open_many_files(limit, highest, raised):
    code = f"""
import resource
from config.worker import allow_open_files
resource.setrlimit(resource.RLIMIT_NOFILE, ({limit}, {highest}))
allow_open_files()
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=BASE_DIR, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(raised), str(highest)]


@pytest.mark.parametrize(("name", "tasks"), [("worker", 20), ("ops", 20), ("keeper", 5), ("beat", 1)])
def test_process_of_celery_loads_its_tasks_and_no_page(name, tasks):
    code = """
import json, os, sys
from config.worker import app
os.environ["CELERY_SKIP_CHECKS"] = "1"  # as `main` does
app.loader.init_worker()
print(json.dumps([[task for task in app.tasks if not task.startswith("celery.")], list(sys.modules)]))
"""
    environ = {**os.environ, "ORCH_PROCESS": name}
    done = subprocess.run([sys.executable, "-c", code], cwd=BASE_DIR, env=environ, capture_output=True, text=True, check=True)
    own, modules = json.loads(done.stdout)
    assert len(own) == tasks
    pages = {"unfold", "django.contrib.admin", "rest_framework", "drf_spectacular", "django_filters", "celery.bin", "celery.beat"}
    assert pages.isdisjoint(modules)
    assert {module for module in modules if module.startswith("fleet.") and not module.startswith("fleet.jobs")} == set()
    assert "fleet.jobs.models" not in modules
