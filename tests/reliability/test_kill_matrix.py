"""Every verb × every part that can die in its middle: afterwards one final row, and registry, runtime and log agree."""

import re
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
import requests
from django.db import connections

from audit.models import AuditRow
from config.local import embedded
from engines.models import Kind, Operation, OperationState
from engines.transitions import TRANSITIONS
from tests import servers, waiting
from tests.conftest import make_product, running_stack
from tests.reliability import fleet, matrix, results
from tests.reliability.runtimes import Docker, Subprocesses, restart_daemon, used
from tests.stack import Stack

ENVIRONMENT = {
    "ORCH_STOP_GRACE_S": "60",
    "ORCH_BOOT_TIMEOUT_S": "60",
    "ORCH_HEALTH_CHECK_INTERVAL_S": "2",
    "ORCH_LEASE_S": "3",
    "ORCH_LEASE_RENEW_S": "1",
    "ORCH_RESEND_AFTER_S": "2",
    "ORCH_ENGINE_ENV_PASSTHROUGH": "DEMO_FAULTS",
    "DEMO_FAULTS": "1",
}


@pytest.fixture
def product(stack, db):
    return make_product()


def restart_server(name: str) -> None:
    """Stop the server, and start it again two seconds later."""
    server = embedded.Servers(servers.HOME, (name,))
    server.stop()
    since = waiting.now()
    waiting.until(lambda: waiting.passed(since, 2), 5)
    server.start()
    connections.close_all()


LIMIT_S = 60.0  # for all eight together, from the return of what died
NAMED = {(503, "UNAVAILABLE"), (504, "BOOT_TIMEOUT"), (502, "BACKEND_ERROR")}
OF_WEB = "SIGKILL of web"
OF_WORKERS = "SIGKILL of the ops worker"
BY_HAND = "every container removed by hand"
OF_DAEMON = "SIGKILL of dockerd"
FAULTS: dict[str, Callable[[Stack, Subprocesses | Docker], object]] = {
    OF_WORKERS: lambda stack, _: [stack.kill(name) for name in stack.workers],
    OF_WEB: lambda stack, _: stack.kill("web"),
    "Valkey stopped and started": lambda *_: restart_server("valkey"),
    "PostgreSQL stopped and started": lambda *_: restart_server("postgres"),
    OF_DAEMON: lambda *_: restart_daemon(),
    BY_HAND: lambda _, runtime: runtime.remove_containers(),
}


OF_DOCKER = (OF_DAEMON, BY_HAND)  # of a subprocess nothing depends on that daemon, and there are no containers
PAIRS = [
    (runtime, fault) for runtime in ("subprocess", "docker") for fault in FAULTS if runtime == "docker" or fault not in OF_DOCKER
]


CASES = [pytest.param(*pair, marks=pytest.mark.daemon) if pair[1] == OF_DAEMON else pair for pair in PAIRS]


@pytest.mark.parametrize(("runtime", "fault"), CASES, indirect=["runtime"])
def test_every_verb_survives(stack, runtime, product, fault):
    check_every_verb_survives(stack, runtime, product, fault, row=(runtime.name, fault))


SMALL = ("subprocess, `small`", "SIGKILL of the worker")  # which has all queues, health and beat in it


def test_every_verb_survives_the_worker_of_small(db):
    runtime = Subprocesses()
    with used(runtime), running_stack(edition="small", **ENVIRONMENT) as stack:
        check_every_verb_survives(stack, runtime, make_product(), OF_WORKERS, row=SMALL)


def check_every_verb_survives(stack: Stack, runtime: Subprocesses | Docker, product, fault: str, row: tuple[str, str]) -> None:
    """All eight verbs end well after the fault in their middle; their times become a row of the document."""
    matrix.prepare(stack, product)
    networks = runtime.networks()
    with ThreadPoolExecutor() as pool:
        cases = matrix.begin(stack, product, pool)
        assert [case.kind for case in cases if matrix.ended(case.operation)] == []  # all eight are still in their middle
        held = matrix.holds(cases)
        FAULTS[fault](stack, runtime)
        returned = time.monotonic()
        matrix.release(held)
        for case in cases:
            waiting.until(lambda case=case: matrix.ended(case.operation), left_s(returned), f"{case.kind} has ended")
            check_one_final_row(case)
            results.note(*row, case.kind, time.monotonic() - returned)
        waiting.until(lambda: not Operation.objects.filter(finished_at=None).exists(), left_s(returned))
        answers = {case.kind: case.answer for case in cases if case.answer}
        for kind, answer in answers.items():
            check_answer(kind, fault, answer)
    fleet.check_agrees([case.operation.engine_id for case in cases], runtime, removed=fault == BY_HAND)
    assert runtime.networks() == networks
    assert time.monotonic() - returned < LIMIT_S


def left_s(returned: float) -> float:
    """Of the time that all verbs have together."""
    return LIMIT_S - (time.monotonic() - returned)


def check_answer(kind: Kind, fault: str, answer: "Future[requests.Response]") -> None:
    """Whoever asked has been told something with a name; where web itself died, the connection may have ended."""
    try:
        response = answer.result()
    except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError):
        assert fault == OF_WEB, (kind, fault)
        return
    assert response.headers["Content-Type"].startswith("application/json"), (kind, response.text)
    assert "Traceback" not in response.text
    if response.status_code == 200:
        assert "error" not in response.json(), (kind, response.text)
    else:
        assert (response.status_code, response.json()["error"]["code"]) in NAMED, (kind, response.text)


def check_one_final_row(case: matrix.Case) -> None:
    """The operation succeeded, and exactly one row says so."""
    operation = Operation.objects.get(pk=case.operation.pk)
    assert operation.state == OperationState.SUCCEEDED, (
        case.kind,
        operation.error_code,
        operation.error_message,
        operation.steps,
    )
    rows = AuditRow.objects.filter(operation_id=operation.pk).exclude(action__endswith="_requested")
    assert [row.action for row in rows] == [TRANSITIONS[case.kind].done]


def test_results_are_in_the_docs():
    """docs/reliability.md has a row for every runtime and fault, and in each a time for every verb; `results` writes them."""
    head, *rows = results.read()
    assert head == ["", *(f"`{kind}`" for kind in Kind)]
    assert sorted(row[0] for row in rows) == sorted(f"{row}: {fault}" for row, fault in (*PAIRS, SMALL))
    for row in rows:
        assert len(row) == len(head), row
        assert all(re.fullmatch(r"\d+\.\d s", cell) for cell in row[1:]), row
