import subprocess
from contextlib import closing
from pathlib import Path

import docker
import pytest

from engines.backends.docker import DockerBackend
from engines.backends.process.backend import SubprocessBackend
from tests.engines.backends import dock, inside
from tests.engines.backends.dockerd import is_root
from tests.engines.backends.runtimes import processes_of
from tests.memory import Server

USUAL_POOLS = ("172.16.0.0/12", "192.168.0.0/16")  # of a Docker daemon, for networks of one host


@pytest.fixture
def local(tmp_path: Path):
    """A subprocess backend whose engines do not outlive the test."""
    backend = SubprocessBackend(tmp_path / "engines", timeout_s=15)
    yield backend
    for instance in backend.list():
        backend.remove(instance.ref.engine_id)
        assert processes_of(instance.ref.engine_id) == []


@pytest.fixture(scope="module")
def memory_of_module(tmp_path_factory):
    """A server of the module's own: no test of another kind sees its trouble."""
    with closing(Server(tmp_path_factory.mktemp("run") / "memory.sock")) as server:
        server.start()
        yield server


@pytest.fixture
def memory_server(memory_of_module) -> Server:
    """A memory server without instances, and without trouble."""
    memory_of_module.backend.reset()
    return memory_of_module


@pytest.fixture(scope="session")
def client() -> docker.DockerClient:
    """The Docker daemon that the tests look at past the backend."""
    return dock.connect()


@pytest.fixture(scope="session")
def deployment(client: docker.DockerClient):
    """One deployment for all tests that do not mind: its guard is up already."""
    with dock.deployed(client) as backend:
        yield backend


@pytest.fixture
def docked(client: docker.DockerClient, deployment: DockerBackend):
    """A Docker backend whose engines do not outlive the test."""
    yield deployment
    for engine_id in {instance.ref.engine_id for instance in deployment.list()}:
        deployment.remove(engine_id)
        assert not dock.has_volume(client, engine_id)


@pytest.fixture
def world():
    """A machine beyond the host that answers, as does the metadata service: the name of its network namespace."""
    with inside.world() as name:
        yield name


@pytest.fixture
def no_pool_left(client):
    """The daemon has no subnet left for a further network.

    The daemon takes no subnet that overlaps a route of its host: routes to its usual pools leave it none at once. Networks take
    what is left.
    """
    routes = [[pool, "dev", "lo", "metric", "9999"] for pool in USUAL_POOLS if is_root()]
    taken = []
    try:
        for route in routes:
            subprocess.run(["ip", "route", "add", *route], check=True)
        while True:
            taken.append(client.networks.create(f"taken-{len(taken)}"))
    except docker.errors.APIError:
        yield
    finally:
        for network in taken:
            network.remove()
        for route in routes:
            subprocess.run(["ip", "route", "delete", *route], check=False)
