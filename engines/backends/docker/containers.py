"""What an engine's container is made of, and how it is found again."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from engines.backends.base import INNER_PORT, Limits, Ref, Spec, State, instance_name
from engines.backends.docker.options import Options

DEPLOYMENT = "roundhouse.deployment"
PRODUCT = "roundhouse.product"
ENGINE = "roundhouse.engine"
INCARNATION = "roundhouse.incarnation"
PORT = "roundhouse.port"
REACH = "roundhouse.reach"
CLIENT = "roundhouse.client"  # these two are of containers that call engines: see `clients`
PRODUCTS = "roundhouse.products"

EXPOSED = f"{INNER_PORT}/tcp"
STATES = {"created": State.CREATED, "running": State.RUNNING, "paused": State.RUNNING, "restarting": State.RUNNING}


@dataclass(frozen=True)
class Found:
    """A container of ours as the daemon lists it."""

    id: str
    name: str
    ref: Ref
    product: str
    image: str  # its id
    port: int
    state: State
    network: str
    reach: str
    leaving: bool  # somebody began to remove it

    @property
    def runs(self) -> bool:
        return self.state is State.RUNNING


def digits(deployment: str) -> str:
    """Four hexadecimal digits that stand for the deployment where there is little room: in names of bridges, in MAC addresses."""
    return hashlib.sha256(deployment.encode()).hexdigest()[:4]


def mac_prefix(deployment: str) -> str:
    """How the MAC addresses of this deployment's engines begin (four bytes, locally administered): the guard knows them by it."""
    part = digits(deployment)
    return f"0e:48:{part[:2]}:{part[2:]}"


def mac_address(deployment: str, port: int) -> str:
    """The MAC address of an engine: no two engines of a host have the same port, also where it is not published."""
    return f"{mac_prefix(deployment)}:{port >> 8:02x}:{port & 255:02x}"


def spare_name(deployment: str, ref: Ref) -> str:
    """The name of a container that was never asked to start."""
    return f"{instance_name(deployment, ref.engine_id)}-{ref.incarnation}"


def volume_name(engine_id: UUID) -> str:
    """The name of an engine's volume."""
    return f"engine-data-{engine_id}"


def owner_of(volume: Mapping[str, Any]) -> UUID | None:
    """The engine of a volume as the daemon lists it; None if it is no engine's."""
    try:
        return UUID((volume["Labels"] or {})[ENGINE])
    except (KeyError, ValueError):
        return None


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
        listed["ImageID"],
        port,
        state,
        next(iter(networks), network),
        marks.get(REACH, "port"),
        listed["State"] in ("removing", "dead"),
    )


def config(
    spec: Spec, network: str, options: Options, dns_options: Sequence[str] = (), image_labels: Iterable[str] = ()
) -> dict[str, Any]:
    """The body of the daemon's `POST /containers/create`. `dns_options`: see `name_servers`.

    `image_labels`: names of the image's labels. A container has them as well, but an engine's image is a stranger's, and might
    call itself a client, or a service of somebody's compose project: they are made empty.
    """
    marks = {DEPLOYMENT: options.deployment, ENGINE: str(spec.ref.engine_id)}
    env = {**spec.env, "SQLITE_DB_PATH": "/data/brain.sqlite", "CATALOG_DIR": "/catalog"}
    return {
        "Image": spec.digest or spec.image,
        "User": options.user,
        "Env": [f"{name}={value}" for name, value in env.items()],
        "Labels": {
            **dict.fromkeys(image_labels, ""),
            **marks,
            PRODUCT: spec.product,
            INCARNATION: str(spec.ref.incarnation),
            PORT: str(spec.port),
            REACH: options.reach,
        },
        "ExposedPorts": {EXPOSED: {}},
        "Healthcheck": {"Test": ["NONE"]},  # the fleet probes; an image's own check would only cost
        "HostConfig": {
            "NetworkMode": network,
            "DnsOptions": list(dns_options),
            "PortBindings": _published(spec.port, options),
            "Mounts": _mounts(spec.ref.engine_id, marks, options),
            **_hardening(options),
            **_ceilings(spec.limits, options),
        },
        **_addressed(spec, network, options),
    }


def _published(port: int, options: Options) -> dict[str, Any]:
    """Nothing where engines are reached by name: whoever may call them is on their network."""
    return {EXPOSED: [{"HostIp": options.bind, "HostPort": str(port)}]} if options.reach == "port" else {}


def _addressed(spec: Spec, network: str, options: Options) -> dict[str, Any]:
    """The container's name on its network, and the MAC address that the guard knows it by. Without one Docker derives it from the
    IP address, so that nobody is misled by what was known of an IP address before: see `Guard.announce`."""
    endpoint: dict[str, Any] = {"Aliases": [instance_name(options.deployment, spec.ref.engine_id)]}
    if options.reach == "port":
        return {"NetworkingConfig": {"EndpointsConfig": {network: endpoint}}}
    mac = mac_address(options.deployment, spec.port)  # old daemons read it at the top, new ones in the endpoint
    return {"MacAddress": mac, "NetworkingConfig": {"EndpointsConfig": {network: {**endpoint, "MacAddress": mac}}}}


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
