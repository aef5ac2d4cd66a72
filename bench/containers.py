"""Docker objects of a benchmark's temporary deployment: memory of its containers, size of its volumes, and removal."""

from typing import Any, cast

import docker

from common.settings import settings
from engines.backends.docker.containers import DEPLOYMENT, ENGINE
from engines.backends.docker.guard import END

MB = 1024 * 1024


def connect() -> docker.DockerClient:
    """A client of the Docker daemon in the settings."""
    return docker.DockerClient(base_url=settings.ENV.docker_url) if settings.ENV.docker_url else docker.from_env()


def memory_mb(client: docker.DockerClient, deployment: str) -> tuple[float, float]:
    """Memory of the deployment's running containers in MB, without unused file cache: (guard, all engines together)."""
    found = client.containers.list(filters={"label": f"{DEPLOYMENT}={deployment}"}, ignore_removed=True)
    ours, engines = 0.0, 0.0
    for container in found:
        mb = _used_mb(cast(dict[str, Any], container.stats(stream=False))["memory_stats"])
        if ENGINE in container.labels:
            engines += mb
        else:
            ours += mb
    return ours, engines


def _used_mb(memory: dict[str, Any]) -> float:
    details = memory.get("stats", {})
    cache = details.get("inactive_file", details.get("total_inactive_file", 0))  # name in cgroups v2, or v1
    return float(memory["usage"] - cache) / MB


def volumes_bytes(client: docker.DockerClient, deployment: str) -> int:
    """Bytes in the volumes of the deployment's engines."""
    volumes = client.df()["Volumes"] or []
    mine = [volume for volume in volumes if (volume["Labels"] or {}).get(DEPLOYMENT) == deployment]
    return sum(max(0, volume["UsageData"]["Size"]) for volume in mine)


def remove_all(client: docker.DockerClient, deployment: str) -> None:
    """Remove all objects with the deployment's label, and the guard's firewall rules from the host."""
    mine: dict[str, str | list[str] | bool] = {"label": f"{DEPLOYMENT}={deployment}"}
    for guard in client.containers.list(filters={**mine, "name": "guard", "status": "running"}):
        guard.exec_run(["sh", "-c", END])
    for container in client.containers.list(all=True, filters=mine, ignore_removed=True):
        container.remove(force=True, v=True)
    for volume in client.volumes.list(filters=mine):
        volume.remove()
    for network in client.networks.list(filters=mine):
        network.remove()
