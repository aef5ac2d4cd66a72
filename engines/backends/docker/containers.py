"""What an engine's container is made of, and how it is found again."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from engines.backends.base import Limits, Ref, Spec, State
from engines.backends.docker.options import Options

DEPLOYMENT = "roundhouse.deployment"
PRODUCT = "roundhouse.product"
ENGINE = "roundhouse.engine"
INCARNATION = "roundhouse.incarnation"
PORT = "roundhouse.port"

INNER_PORT = "8000/tcp"
STATES = {"created": State.CREATED, "running": State.RUNNING, "paused": State.RUNNING, "restarting": State.RUNNING}


@dataclass(frozen=True)
class Found:
    """A container of ours as the daemon lists it."""

    id: str
    name: str
    ref: Ref
    product: str
    port: int
    state: State
    network: str
    leaving: bool  # somebody began to remove it

    @property
    def runs(self) -> bool:
        return self.state is State.RUNNING


def running_name(deployment: str, engine_id: UUID) -> str:
    """The name an engine's container has to have to run, so that no two do (see `DockerBackend.start`)."""
    return f"{deployment}-{engine_id}"


def spare_name(deployment: str, ref: Ref) -> str:
    """The name of a container that was never asked to start."""
    return f"{running_name(deployment, ref.engine_id)}-{ref.incarnation}"


def volume_name(engine_id: UUID) -> str:
    """The name of an engine's volume."""
    return f"engine-data-{engine_id}"


def labels(deployment: str, ref: Ref) -> list[str]:
    """The filter that finds the containers of one instance."""
    return [*engine_labels(deployment, ref.engine_id), f"{INCARNATION}={ref.incarnation}"]


def engine_labels(deployment: str, engine_id: UUID) -> list[str]:
    """The filter that finds the containers of one engine."""
    return [f"{DEPLOYMENT}={deployment}", f"{ENGINE}={engine_id}"]


def parse(listed: Mapping[str, Any]) -> Found | None:
    """From an entry of the daemon's list; None if it is no engine's container."""
    marks = listed["Labels"]
    try:
        ref = Ref(UUID(marks[ENGINE]), int(marks[INCARNATION]))
        port = int(marks[PORT])
    except (KeyError, ValueError):
        return None
    names = [name[1:] for name in listed["Names"] or ["/"] if name.count("/") == 1]
    state = STATES.get(listed["State"], State.EXITED)
    network = listed["HostConfig"]["NetworkMode"]
    networks = (listed.get("NetworkSettings") or {}).get("Networks") or {}
    return Found(
        listed["Id"],
        names[0],
        ref,
        marks.get(PRODUCT, ""),
        port,
        state,
        next(iter(networks), network),
        listed["State"] in ("removing", "dead"),
    )


def config(spec: Spec, network: str, options: Options) -> dict[str, Any]:
    """The body of the daemon's `POST /containers/create`."""
    marks = {DEPLOYMENT: options.deployment, ENGINE: str(spec.ref.engine_id)}
    env = {**spec.env, "SQLITE_DB_PATH": "/data/brain.sqlite", "CATALOG_DIR": "/catalog"}
    return {
        "Image": spec.image,
        "User": options.user,
        "Env": [f"{name}={value}" for name, value in env.items()],
        "Labels": {**marks, PRODUCT: spec.product, INCARNATION: str(spec.ref.incarnation), PORT: str(spec.port)},
        "ExposedPorts": {INNER_PORT: {}},
        "Healthcheck": {"Test": ["NONE"]},  # the fleet probes; an image's own check would only cost
        "HostConfig": {
            "NetworkMode": network,
            "PortBindings": {INNER_PORT: [{"HostIp": options.bind, "HostPort": str(spec.port)}]},
            "Mounts": _mounts(spec.ref.engine_id, marks, options),
            **_hardening(options),
            **_ceilings(spec.limits, options),
        },
        "NetworkingConfig": {
            "EndpointsConfig": {network: {"Aliases": [running_name(options.deployment, spec.ref.engine_id)]}},
        },
    }


def _mounts(engine_id: UUID, marks: Mapping[str, str], options: Options) -> list[dict[str, Any]]:
    """A new volume takes over owner and mode of the image's /data: that is how the engine's user may write there."""
    volume = {"Type": "volume", "Source": volume_name(engine_id), "Target": "/data", "VolumeOptions": {"Labels": dict(marks)}}
    if not options.catalog:
        return [volume]
    return [volume, {"Type": "bind", "Source": options.catalog, "Target": "/catalog", "ReadOnly": True}]


def _hardening(options: Options) -> dict[str, Any]:
    """Seccomp and AppArmor are not named: that is the daemon's default profile of each."""
    return {
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges"],
        "ReadonlyRootfs": True,
        "Tmpfs": {"/tmp": f"rw,nosuid,nodev,noexec,mode=1777,size={options.tmp_mb}m"},  # noqa: S108
        "IpcMode": "private",
        "Init": True,  # buries what the engine's own children leave behind, which would count as processes
        "RestartPolicy": {"Name": "no"},  # we restart, so that every restart leaves a row
        "LogConfig": {"Type": "json-file", "Config": {"max-size": f"{options.log_mb}m", "max-file": "2"}},
    }


def _ceilings(limits: Limits, options: Options) -> dict[str, Any]:
    """A product's limits only lower the deployment's. Swap is memory too, so there is none on top."""
    memory = min(limits.memory_mb or options.memory_mb, options.memory_mb) * 1024 * 1024
    return {
        "Memory": memory,
        "MemorySwap": memory,
        "NanoCpus": int(min(limits.cpus or options.cpus, options.cpus) * 1e9),
        "PidsLimit": min(limits.pids or options.pids, options.pids),
    }
