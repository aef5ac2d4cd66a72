from collections.abc import Iterator
from pathlib import Path

import pytest

from config.local.embedded import Servers
from tests import kinds
from tests.config.support import stop_launchers


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A home that does not exist yet; whatever a test leaves of it is stopped and removed."""
    path = tmp_path / "home"
    yield path
    stop_launchers(path)
    if path.exists():
        Servers(path).remove()


@pytest.fixture(scope="module")
@kinds.needs("embedded")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Running servers of a home of their own."""
    servers = Servers(tmp_path_factory.mktemp("embedded") / "home")
    servers.start()
    yield servers
    servers.remove()
