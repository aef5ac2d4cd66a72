"""The ids of a call are on every line that the call, and the work it queued, leaves in the log of any process."""

import json
import re

import pytest
import requests
from celery import current_app

from audit.models import AuditRow
from common import context
from engines.models import Operation
from engines.tasks import read_logs
from tests import waiting
from tests.conftest import make_product, running_stack
from tests.stack import WORKERS


@pytest.fixture(scope="module")
def stack(database):
    with running_stack(ORCH_ENGINE_BACKEND="memory", ORCH_LOG_LEVEL="INFO") as processes:
        yield processes


@pytest.fixture
def product(stack, db):
    return make_product()


AGENT = f"python-requests/{requests.__version__}"


def lines(stack, *names):
    """Every JSON line of these processes' logs; Celery greets in plain text."""
    return [json.loads(line) for name in names for line in stack.log(name).splitlines() if line.startswith("{")]


def test_operation_is_logged_with_the_ids_of_its_call(stack, product):
    provision = stack.call("POST", "/engines/provision", product.key, {"user_id": "alice"}, **{"X-Request-ID": "r-1-provision"})
    stop = stack.call("POST", "/engines/alice/stop", product.key, **{"X-Request-ID": "r-1-stop"})
    assert [answer.headers["X-Request-ID"] for answer in (provision, stop)] == ["r-1-provision", "r-1-stop"]
    for kind, answer in (("provision", provision), ("stop", stop)):
        operation, expected, call_id = Operation.objects.get(kind=kind), f"r-1-{kind}", answer.headers["X-Call-ID"]
        waiting.until(lambda expected=expected: succeeded(stack, "run_operation", expected), 10, "Celery says that it is done")
        about = [line for line in lines(stack, "web", *WORKERS) if str(operation.pk) in json.dumps(line)]
        assert "operation_ended" in [line["event"] for line in about]
        assert {(line.get("request_id"), line.get("call_id")) for line in about} == {(expected, call_id)}
        rows = AuditRow.objects.filter(operation_id=operation.pk)
        assert {(row.request_id, str(row.call_id)) for row in rows} == {(expected, call_id)}
        told = {(row.key_id, row.client_ip, row.user_agent, row.on_behalf_of) for row in rows}
        assert told == {(product.keys.get().pk, "127.0.0.1", AGENT, None)}


def succeeded(stack, task, request_id):
    said = re.compile(rf"Task engines\.tasks\.{task}\[.*\] succeeded")
    found = [line for line in lines(stack, *WORKERS, "health") if said.match(line["event"])]
    return [line for line in found if line.get("request_id") == request_id]


def test_every_line_of_a_task_of_a_request_has_its_id(stack, product):
    """No task that carries an operation out says anything without the id of who asked; Celery's own lines included.

    Work that the system begins by itself has the id of a call, and no request.
    """
    before = [len(lines(stack, name)) for name in WORKERS]
    stack.call("POST", "/engines/provision", product.key, {"user_id": "alice"}, **{"X-Request-ID": "r-2"})
    waiting.until(lambda: succeeded(stack, "run_operation", "r-2"), 10, "Celery says that it is done")
    said = [line for name, begin in zip(WORKERS, before, strict=True) for line in lines(stack, name)[begin:]]
    told = [line for line in said if "run_operation" in line["event"]]
    of_system = {str(call_id) for call_id in Operation.objects.filter(actor="system").values_list("call_id", flat=True)}
    assert told
    assert [line for line in told if not (line.get("request_id") or line.get("call_id") in of_system)] == []
    assert all(line.get("call_id") for line in told)


def test_log_tail_is_read_with_its_requests_id(stack, product):
    stack.call("POST", "/engines/provision", product.key, {"user_id": "alice"})
    stack.call("GET", "/engines/alice/logs", product.key, **{"X-Request-ID": "r-3"}).raise_for_status()
    waiting.until(lambda: succeeded(stack, "read_logs", "r-3"), 10, "Celery says that it is done")


def test_traceback_of_a_task_has_its_requests_id(stack, product):
    with context.of_request("r-4"):
        current_app.send_task(read_logs.name, ("too", "many", "arguments", "for", "it"), queue="health", retry=False)
    (line,) = waiting.until(
        lambda: [line for line in lines(stack, "health") if "Traceback" in line.get("exception", "")], 10, "it failed"
    )
    assert line["request_id"] == "r-4"


def test_text_of_a_caller_steers_no_terminal_that_shows_the_log(stack, product):
    stack.call("GET", "/engines/%1b[2J%c2%9b31m%e2%80%ae%0d%0a", product.key, **{"X-Request-ID": "r-6"})
    (line,) = [line for line in stack.log("web").splitlines() if '"r-6"' in line and "/engines/" in line]
    assert line.isascii()
    assert line.isprintable()
    assert r"/engines/\x1b[2J\x9b31m\u202e\r\n" in json.loads(line)["event"]


def test_refusal_is_logged_with_its_requests_id(stack, product):
    stack.call("GET", "/engines/nobody", product.key, **{"X-Request-ID": "r-5"})
    (line,) = [line for line in lines(stack, "web") if line["event"] == "Not Found: /engines/nobody"]
    assert line["request_id"] == "r-5"


def test_work_of_no_request_is_a_call_of_its_own(stack, product):
    """A worker's thread forgets the ids with the task."""

    def told():
        return [line for line in lines(stack, "health") if "engines.tasks.dispatch" in line["event"]]

    waiting.until(lambda: len(told()) > 1, 15)
    assert {line.get("request_id") for line in told()} == {None}
    assert len({line["call_id"] for line in told()}) == len(told())
