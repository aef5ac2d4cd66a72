"""Provision, wake and destroy through the API, compared with the raw Docker SDK on the same image."""

import math
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from uuid import uuid4

import docker
import requests
from docker.errors import NotFound
from docker.models.containers import Container

from bench.figures import percentile, table
from bench.running_deployment import Deployment
from common.settings import settings
from engines.backends.docker.options import Options

POLL_S = 0.01
NETWORKED = "raw start + health, on a network of its own"  # shows how much of a wake the network costs
PAIRS = {"provision": "raw create + start + health", "wake": "raw start + health", "destroy": "raw stop + remove"}
ADDED_MS = {"provision": 150, "wake": 100}  # limits of the milliseconds added by the API at p50
ROUND = 50  # engines per turn: short turns, because the speed of the machine changes within minutes
BULK_SHARE = 0.7  # limit: the least share of the raw SDK's rate
Samples = dict[str, list[float]]


class Raw:
    """The least work for a healthy container: create, start, poll its health; no record, no limits, Docker's own network.

    `left` gets a removal callback per container, because a benchmark may end anywhere. `network` names the containers' network.
    """

    def __init__(self, left: ExitStack, network: str = "bridge") -> None:
        self.left = left
        self.client = docker.DockerClient(base_url=Options.read(settings.ENV).url, timeout=60)
        self.network = network

    def provision(self) -> Container:
        """Create a container with a volume, and start the container until it is healthy."""
        name = f"bench-{uuid4().hex[:12]}"
        self.left.callback(self._remove, name)
        container = self.client.containers.create(
            settings.ENV.engine_image,
            name=name,
            network=self.network,
            ports={"8000/tcp": ("127.0.0.1", 0)},
            volumes={name: {"bind": "/data"}},
            environment={"ENGINE_KEY_HASH": "0" * 64, "SQLITE_DB_PATH": "/data/brain.sqlite"},
        )
        return self.wake(container)

    def wake(self, container: Container) -> Container:
        """Start the container and wait until its `/health` answers 200."""
        container.start()
        container.reload()
        published = container.ports["8000/tcp"]
        assert published is not None
        port = published[0]["HostPort"]
        while not _healthy(f"http://127.0.0.1:{port}/health"):
            time.sleep(POLL_S)
        return container

    def destroy(self, container: Container) -> None:
        """Stop the container, and remove the container and its volume."""
        container.stop(timeout=30)
        container.remove()
        self.client.volumes.get(str(container.name)).remove()

    def _remove(self, name: str) -> None:
        """Remove the container and the volume called `name`, if they exist, running or not."""
        for kind in (self.client.containers, self.client.volumes):
            with suppress(NotFound):
                kind.get(name).remove(force=True)


def _healthy(url: str) -> bool:
    try:
        return requests.get(url, timeout=5).status_code == 200
    except requests.RequestException:
        return False


def _time(call: Callable[[], object], into: list[float]) -> None:
    began = time.perf_counter()
    call()
    into.append(time.perf_counter() - began)


def one_at_a_time(fleet: Deployment, count: int) -> Samples:
    """Seconds per step of `count` lives of an engine through the API and `count` lives of a raw container, alternately.

    After every pair, a second raw container is woken on a network of its own, like the network of a product.
    """
    seconds = defaultdict[str, list[float]](list)
    with ExitStack() as left:
        raw = Raw(left)
        other, its = _networked(raw)
        for n in range(count):
            _live(fleet, f"user-{n}", raw, seconds)
            _time(lambda: other.wake(its), seconds[NETWORKED])
            its.stop(timeout=30)
    return seconds


def _live(fleet: Deployment, user: str, raw: Raw, seconds: Samples) -> None:
    seconds["provision"].append(_provision(fleet, user))
    container = _timed_provision(raw, seconds["raw create + start + health"])
    fleet.sleep(user)
    container.stop(timeout=30)
    seconds["wake"].append(fleet.timed("POST", f"/engines/{user}/admit", {"auto_wake": True}))
    _time(lambda: raw.wake(container), seconds["raw start + health"])
    seconds["destroy"].append(fleet.timed("DELETE", f"/engines/{user}"))
    _time(lambda: raw.destroy(container), seconds["raw stop + remove"])


def _networked(raw: Raw) -> tuple[Raw, Container]:
    """A `Raw` with a newly created network, and a stopped container on the network."""
    network = raw.client.networks.create(f"bench-{uuid4().hex[:12]}")
    raw.left.callback(network.remove)
    other = Raw(raw.left, str(network.name))
    container = other.provision()
    container.stop(timeout=30)
    return other, container


def _timed_provision(raw: Raw, into: list[float]) -> Container:
    began = time.perf_counter()
    container = raw.provision()
    into.append(time.perf_counter() - began)
    return container


def in_bulk(fleet: Deployment, count: int, at_once: int) -> tuple[float, float]:
    """Engines per second through the API and with the raw SDK, `at_once` at a time.

    The API and the raw SDK alternate after ROUND engines. All engines stay up until the end.
    """
    containers = list[Container]()
    ours_s = theirs_s = 0.0
    with ExitStack() as left, ThreadPoolExecutor(at_once) as pool:
        raw = Raw(left)
        for first in range(0, count, ROUND):
            numbers = range(first, min(first + ROUND, count))
            began = time.perf_counter()
            list(pool.map(lambda n: _provision(fleet, f"bulk-{n}"), numbers))
            between = time.perf_counter()
            containers += pool.map(lambda _: raw.provision(), numbers)
            ours_s, theirs_s = ours_s + between - began, theirs_s + time.perf_counter() - between
        list(pool.map(lambda n: fleet.timed("DELETE", f"/engines/bulk-{n}"), range(count)))
        list(pool.map(raw.destroy, containers))
    return count / ours_s, count / theirs_s


def _provision(fleet: Deployment, user: str) -> float:
    return fleet.timed("POST", "/engines/provision", {"user_id": user})


def report(seconds: Samples) -> tuple[str, bool]:
    """The table with the milliseconds added by the API at the median, and whether the limits hold."""
    lines, holds = [table(seconds)], True
    for ours, theirs in PAIRS.items():
        added = (percentile(seconds[ours], 0.5) - percentile(seconds[theirs], 0.5)) * 1000
        within = added <= ADDED_MS.get(ours, math.inf)
        verdict = f"  {'PASS' if within else 'FAIL'} (at most {ADDED_MS[ours]})" if ours in ADDED_MS else ""
        lines.append(f"{ours} adds {added:.0f} ms at p50{verdict}")
        holds &= within
    network = (percentile(seconds[NETWORKED], 0.5) - percentile(seconds["raw start + health"], 0.5)) * 1000
    lines.append(f"of a wake, {network:.0f} ms at p50 are Docker's for a network of its own")
    return "\n".join(lines), holds


def report_bulk(ours: float, raw: float, what: str) -> tuple[str, bool]:
    """A line with both rates in engines per second, and whether the limit holds."""
    holds = ours / raw >= BULK_SHARE
    verdict = f"{'PASS' if holds else 'FAIL'} (at least {BULK_SHARE})"
    return f"{what}: {ours:.2f}/s, raw {raw:.2f}/s, ratio {ours / raw:.2f}  {verdict}", holds
