"""Settings of a deployment for its containers."""

import os
from dataclasses import dataclass
from typing import Any, Self

from engines.backends.docker.control_plane import hosts

SOCKET = "unix:///var/run/docker.sock"


@dataclass(frozen=True)
class Options:
    """Defaults equal those of the settings with equal names; a deployment manages only objects labelled with its own name."""

    url: str = SOCKET
    deployment: str = "roundhouse"
    timeout_s: float = 30  # limit for one verb, not counting the grace of a stop
    reach: str = "port"  # by a published port; or "container": by name, on the engines' networks
    bind: str = "127.0.0.1"  # address of the daemon's host on which ports are published
    catalog: str = ""  # folder on the daemon's host; empty: no catalog is mounted
    user: str = "10001:10001"
    runtime: str = "runc"  # of engines whose product names none
    memory_mb: int = 512
    cpus: float = 1.0
    pids: int = 256
    tmp_mb: int = 64
    disk_mb: int = 1024  # of a volume, unless the product's policy has another limit
    disk_quota: bool = False  # new volumes get a quota of the host's file system
    log_mb: int = 10  # per log file; a container keeps two files
    write_mb_s: int = 50  # to the host's disk; 0: no limit
    disk_device: str = ""  # block device with the daemon's data; empty: the guard finds it
    network: str = "engine_net"  # prefix of the networks' names
    network_size: int = 850  # containers per network; a Linux bridge takes 1,023
    egress_deny: str = ""  # ranges of addresses, comma-separated, beside those that are not the internet
    egress_allow: str = ""  # exceptions from the denied ranges, comma-separated, each perhaps with ports
    max_flows: int = 2000  # connections to the outside per engine
    flows_per_s: int = 50  # new connections to the outside per engine
    control_plane: tuple[str, ...] = ()  # hosts of the control plane's servers, denied to all engines
    guard_image: str = "roundhouse-guard:latest"

    @classmethod
    def read(cls, env: Any) -> Self:
        """From the settings, a `common.env.Env`; untyped because the Docker backend does not import the settings."""
        url = env.docker_url or os.environ.get("DOCKER_HOST") or SOCKET
        return cls(
            url=url,
            deployment=env.deployment,
            timeout_s=env.backend_timeout_s,
            reach=env.engine_reach,
            bind=env.engine_bind,
            catalog=env.catalog_mount_path,
            user=env.engine_user,
            runtime=env.runtimes[0],
            memory_mb=env.engine_memory_mb,
            cpus=env.engine_cpus,
            pids=env.engine_pids,
            tmp_mb=env.engine_tmp_mb,
            disk_mb=env.engine_disk_mb,
            disk_quota=env.engine_disk_quota,
            log_mb=env.engine_log_mb,
            write_mb_s=env.engine_write_mb_s,
            disk_device=env.engine_disk_device,
            network=env.engine_network,
            network_size=env.engine_network_size,
            egress_deny=env.engine_egress_deny,
            egress_allow=env.engine_egress_allow,
            max_flows=env.engine_max_flows,
            flows_per_s=env.engine_flows_per_s,
            control_plane=hosts(env.database_url, env.database_owner_url, env.redis_url, url),
            guard_image=env.guard_image,
        )
