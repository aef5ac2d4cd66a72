"""Every verb × every part that can die in its middle: afterwards one final row, and registry, runtime and log agree."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.db import connections

from audit.models import AuditRow
from config import embedded
from engines.models import Operation, OperationState
from engines.transitions import TRANSITIONS
from tests import servers, waiting
from tests.conftest import make_product, running_stack
from tests.reliability import fleet, matrix, results
from tests.reliability.runtimes import Docker, Subprocesses, restart_daemon, used
from tests.stack import WORKERS, Stack

ENVIRONMENT = {
    "ORCH_STOP_GRACE_S": "10",
    "ORCH_HEALTH_CHECK_INTERVAL_S": "2",
    "ORCH_ENGINE_ENV_PASSTHROUGH": "DEMO_FAULTS,DEMO_BOOT_DELAY_S",
    "DEMO_FAULTS": "1",
    "DEMO_BOOT_DELAY_S": "3",
}


@pytest.fixture(scope="module", params=["subprocess", "docker"])
def runtime(request, database: None) -> Iterator[Subprocesses | Docker]:
    runtime = Docker() if request.param == "docker" else Subprocesses()
    with used(runtime):
        yield runtime


@pytest.fixture(scope="module")
def stack(runtime) -> Iterator[Stack]:
    with running_stack(**ENVIRONMENT, **runtime.environment) as processes:
        yield processes


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


FAULTS: dict[str, Callable[[Stack], None]] = {
    "SIGKILL of the ops worker": lambda stack: [stack.kill(name) for name in WORKERS],
    "SIGKILL of web": lambda stack: stack.kill("web"),
    "Valkey stopped and started": lambda stack: restart_server("valkey"),
    "PostgreSQL stopped and started": lambda stack: restart_server("postgres"),
    "SIGKILL of dockerd": lambda stack: restart_daemon(),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_verb_survives(stack, runtime, product, fault):
    if runtime.name == "subprocess" and "dockerd" in fault:
        return  # nothing of it depends on that daemon
    matrix.prepare(stack, product)
    with ThreadPoolExecutor() as pool:
        cases = matrix.begin(stack, product, pool)
        FAULTS[fault](stack)
        returned = time.monotonic()
        for case in cases:
            waiting.until(lambda case=case: matrix.ended(case.operation), 60, f"{case.kind} has ended")
            check_one_final_row(case)
            results.note(runtime.name, fault, case.kind, time.monotonic() - returned)
    waiting.until(lambda: not Operation.objects.filter(finished_at=None).exists(), 60)
    fleet.check_agrees([case.operation.engine_id for case in cases], runtime)


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
    """docs/reliability.md has a row for every fault and a column for every verb; see tests/reliability/results.py."""
    table = results.DOCUMENT.read_text()
    for fault in FAULTS:
        assert f"| docker: {fault} |" in table
    for kind in TRANSITIONS:
        assert f"`{kind}`" in table
