"""A stack for the client's tests, and products to call it as."""

import contextlib
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from django.conf import settings

from roundhouse_client import Client, Operator
from tests.conftest import empty, make_product, running_stack
from tests.stack import WORKERS


@pytest.fixture(scope="module")
def server(database, django_db_blocker):
    """The web server and its workers, for a whole module; every test has a product of its own."""
    empty()
    environment = {"ORCH_ENGINE_BACKEND": "memory", "ORCH_OPS_CONCURRENCY": "4"}
    with django_db_blocker.unblock(), running_stack("web", *WORKERS, "health", "beat", **environment) as stack:
        yield stack


@pytest.fixture
def acme(server, request):
    """A product of this test's own."""
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.removeprefix("test_").lower())
    return make_product(name[-60:].strip("-"))


@pytest.fixture
def client(server, acme):
    """`acme` as a client."""
    with Client(server.url, acme.key) as made:
        yield made


@pytest.fixture
def operator(server):
    """The operator as a client."""
    with Operator(server.url, settings.ENV.admin_key) as made:
        yield made


class Shell:
    """`roundhouse` as `acme` and the operator run it."""

    def __init__(self, url: str, key: str) -> None:
        self.environment = {**os.environ, "ROUNDHOUSE_URL": url, "ROUNDHOUSE_PLATFORM_KEY": key}
        self.environment |= {"ROUNDHOUSE_ADMIN_KEY": settings.ENV.admin_key, "PYTHONUNBUFFERED": "1"}

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        command = [str(Path(sys.executable).parent / "roundhouse"), *arguments]
        return subprocess.Popen(command, env=self.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def run(self, *arguments: str, expect: int = 0) -> "subprocess.CompletedProcess[str]":
        process = self.start(*arguments)
        output, complaint = process.communicate(timeout=60)
        assert process.returncode == expect, (output, complaint)
        return subprocess.CompletedProcess(arguments, process.returncode, output, complaint)

    def run_on_terminal(self, *arguments: str, expect: int = 0) -> str:
        """All that the command writes to its terminal, with the terminal's own `\r\n` as `\n`."""
        ours, its = pty.openpty()
        command = [str(Path(sys.executable).parent / "roundhouse"), *arguments]
        process = subprocess.Popen(command, env=self.environment, stdin=its, stdout=its, stderr=its)
        os.close(its)
        written = b""
        with open(ours, "rb", buffering=0) as terminal, contextlib.suppress(OSError):  # EIO: the command has ended
            while part := terminal.read(65_536):
                written += part
        assert process.wait(60) == expect, written
        return written.decode().replace("\r\n", "\n")


@pytest.fixture
def shell(server, acme):
    return Shell(server.url, acme.key)
