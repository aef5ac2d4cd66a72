"""A real Docker daemon for the tests: whether there is one, deployments of their own on it, and a look at what they left."""

import io
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from uuid import UUID

import docker
import pytest

from bench.containers import remove_all as sweep
from engines.backends.docker import DockerBackend, Options, networks
from engines.backends.docker.containers import DEPLOYMENT, Found
from engines.backends.docker.volumes import name as volume_name
from tests import kinds, servers
from tests.engines.backends.runtimes import IMAGE, Runtime

NETWORK = f"10.213.{servers.FIRST_PORT // servers.PORTS}"  # of this process of tests: others run side by side
SMALL = f"{NETWORK}.0/29"  # five addresses for containers
ONE_ADDRESS = f"{NETWORK}.8/30"
URL = os.environ.get("DOCKER_HOST") or Options.url


@kinds.needs("docker")
def connect() -> docker.DockerClient:
    """The tests' own client. Skips the test where no daemon answers or the images are missing; fails it if Docker is required."""
    kinds.require("docker")
    try:
        client = docker.DockerClient(base_url=URL, timeout=60)
        for image in (IMAGE, Options.guard_image):
            client.images.get(image)
    except docker.errors.DockerException as error:
        say = pytest.fail if os.environ.get("ORCH_REQUIRE_DOCKER") == "1" else pytest.skip
        say(f"no Docker daemon with the images of `make engine-image` at {URL}: {error}")
    return client


def options(**chosen: Any) -> Options:
    """Those of a deployment that nobody else has."""
    name = f"test-{secrets.token_hex(3)}"
    return replace(Options(url=URL, deployment=name, network=name, timeout_s=20, memory_mb=128, pids=64), **chosen)


@contextmanager
def deployed(client: docker.DockerClient, **chosen: Any) -> Iterator[DockerBackend]:
    """A backend with a deployment of its own, of which nothing is left afterwards."""
    backend = DockerBackend(options(**chosen))
    try:
        yield backend
    finally:
        sweep(client, backend.options.deployment)


def has_volume(client: docker.DockerClient, engine_id: UUID) -> bool:
    try:
        client.volumes.get(volume_name(engine_id))
    except docker.errors.NotFound:
        return False
    return True


def runtime(client: docker.DockerClient, backend: DockerBackend) -> Runtime:
    """For the contract's suite."""
    return Runtime(backend, "no-such-image:1", lambda engine_id: has_volume(client, engine_id))


def container_of(client: docker.DockerClient, backend: DockerBackend, ref: Any) -> Any:
    """The instance's container, as the SDK's object."""
    found: Found | None = None
    with backend._daemon.verb("test"):
        found = backend._roster.find(ref)
    assert found is not None
    return client.containers.get(found.id)


def run_inside(container: Any, code: str) -> str:
    """What Python code prints inside a running container, its errors included. A name server that is silent is given up soon."""
    return container.exec_run(["python3", "-c", code], environment={"RES_OPTIONS": "timeout:2 attempts:1"}).output.decode()


def make_network(client: docker.DockerClient, backend: DockerBackend, name: str, subnet: str = SMALL, **changed: Any) -> Any:
    """A network made before its product's first engine, as an operator would to choose its addresses."""
    pool = docker.types.IPAMPool(subnet=subnet)
    wanted = {**networks.config(backend.options, name, "acme"), "ipam": docker.types.IPAMConfig(pool_configs=[pool]), **changed}
    return client.networks.create(name, **wanted)


def stranger(client: docker.DockerClient, backend: DockerBackend, network: str) -> Any:
    """A container that takes an address of the network."""
    labels = {DEPLOYMENT: backend.options.deployment}  # so that the sweep removes it
    return client.containers.run(IMAGE, ["sleep", "600"], network=network, labels=labels, detach=True)


def build(client: docker.DockerClient, dockerfile: str) -> str:
    """The id of an image built from a Dockerfile without a context."""
    return client.images.build(fileobj=io.BytesIO(dockerfile.encode()), rm=True)[0].id


@contextmanager
def listening(port: int, address: str = "127.0.0.1") -> Iterator[int]:
    """A process of the host, this one, listens on the port (0: any); yields the port."""
    with socket.create_server((address, port), backlog=64) as server:
        yield server.getsockname()[1]
