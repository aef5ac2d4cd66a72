from pathlib import Path

import pytest

from engines.backends.subprocess import SubprocessBackend
from tests.engines.backends.runtimes import processes_of


@pytest.fixture
def local(tmp_path: Path):
    """A subprocess backend whose engines do not outlive the test."""
    backend = SubprocessBackend(tmp_path / "engines", timeout_s=15)
    yield backend
    for instance in backend.list():
        backend.remove(instance.ref.engine_id)
        assert processes_of(instance.ref.engine_id) == []
