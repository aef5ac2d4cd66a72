"""Processes that are forks of one that has its libraries already."""

import json
import os
import signal
import subprocess
import sys
from typing import Any

from config.local.home import BASE_DIR

FORK = """
import os, signal, sys
from config.local import forks
from config.processes import Process

signal.signal(signal.SIGTERM, print)
os.environ["PARENTS"] = "x"
program = [sys.executable, "-m", "tests.config.forked", "one", "two"]
process = Process("web", "app", lambda: {command}, nice=3)
if (pid := os.fork()) == 0:
    forks.turn_into(process, {{"GIVEN": "y", "ORCH_DATABASE_OWNER_URL": "secret", "ORCH_ENGINE_BACKEND": "subprocess"}})
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
PRELOAD = """
import json, os, sys, threading

def descriptors():
    return sorted(os.readlink(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd") if number != str(last))

last = os.dup(0); os.close(last)  # the number that listing the folder takes itself
before = descriptors()
from config.local import preload
preload.load()
print(json.dumps({"threads": threading.active_count(), "opened": descriptors() != before, "loaded": sorted(sys.modules)}))
"""


def run(code: str) -> "subprocess.CompletedProcess[str]":
    environment = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=BASE_DIR, env=environment, capture_output=True, text=True, timeout=60)


def turn_into(command: str) -> "subprocess.CompletedProcess[str]":
    return run(FORK.format(command=command))


def test_turn_into_gives_a_program_what_an_interpreter_would() -> None:
    ended = turn_into("program")
    assert ended.returncode == 3, ended.stderr
    said, *later = ended.stdout.splitlines()
    assert later == ["thread ended", "at exit"]
    found: dict[str, Any] = json.loads(said)
    assert found["arguments"] == ["one", "two"]
    assert found["environment"] == {"ORCH_PROCESS": "web", "ORCH_DATABASE_OWNER_URL": "", "GIVEN": "y", "PARENTS": None}
    assert found["title"] == "roundhouse: web"
    assert found["handled"] == [signal.SIGINT]
    assert found["niceness"] == os.nice(0) + 3


def test_turn_into_executes_what_is_no_module() -> None:
    ended = turn_into("['/bin/sh', '-c', 'echo $ORCH_PROCESS $GIVEN; exit 4']")
    assert (ended.returncode, ended.stdout) == (4, "web y\n")


def test_turn_into_ends_the_fork_when_it_fails() -> None:
    missing = turn_into("['/nowhere/program']")
    assert missing.returncode == 127
    assert "web: [Errno 2]" in missing.stderr
    failed = turn_into("[sys.executable, '-m', 'tests.config.nothing']")
    assert failed.returncode == 1
    assert "No module named tests.config.nothing" in failed.stderr


def test_preload_starts_no_thread_opens_no_file_and_reads_no_settings() -> None:
    ended = run(PRELOAD)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert found["threads"] == 1
    assert not found["opened"]
    assert "config.settings" not in found["loaded"]
    assert {"django", "celery", "gunicorn", "h11"} <= set(found["loaded"])
