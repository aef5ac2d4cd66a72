"""A stack per module, on each runtime that engines have in life."""

from collections.abc import Iterator

import pytest

from tests.conftest import running_stack
from tests.reliability.runtimes import Docker, Subprocesses, used
from tests.stack import Stack


@pytest.fixture(scope="module", params=["subprocess", "docker"])
def runtime(request, database: None) -> Iterator[Subprocesses | Docker]:
    runtime = Docker() if request.param == "docker" else Subprocesses()
    with used(runtime):
        yield runtime


@pytest.fixture(scope="module")
def stack(request, runtime) -> Iterator[Stack]:
    """With the module's ENVIRONMENT."""
    with running_stack(**request.module.ENVIRONMENT, **runtime.environment) as processes:
        yield processes
