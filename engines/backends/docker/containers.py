"""Names, labels and configuration of an engine's container, and the reading of the daemon's list of containers."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from types import MappingProxyType
from typing import Any
from uuid import UUID

from engines.backends.base import INNER_PORT, ImageUnfit, Owner, Ref, Spec, State, instance_name
from engines.backends.docker import makings, volumes
from engines.backends.docker.options import Options

DEPLOYMENT = volumes.DEPLOYMENT
PRODUCT = "roundhouse.product"
ENGINE = "roundhouse.engine"
USER = "roundhouse.user"
IMAGE = "roundhouse.image"  # its name, as it was asked for
INCARNATION = "roundhouse.incarnation"
TOKEN = "roundhouse.token"  # noqa: S105 (of the incarnation; no secret)
PORT = "roundhouse.port"
REACH = "roundhouse.reach"
DISK = "roundhouse.disk_mb"  # the most that a file may take
MADE_OF = "roundhouse.made_of"  # see `makings`
CLIENT = "roundhouse.client"  # CLIENT and PRODUCTS mark containers calling engines: see `clients`
PRODUCTS = "roundhouse.products"

MOST_REPEATED = 32_768  # characters
EXPOSED = f"{INNER_PORT}/tcp"

ANY_ADDRESS = frozenset({"0.0.0.0", "::"})  # noqa: S104 (compared only)
STATES = {"created": State.CREATED, "running": State.RUNNING, "paused": State.RUNNING, "restarting": State.RUNNING}


@dataclass(frozen=True)
class Found:
    """An engine's container as listed by the daemon."""

    id: str
    name: str
    ref: Ref
    owner: Owner
    image: str  # the image's id
    port: int
    state: State
    network: str
    reach: str
    disk_mb: int  # 0: made before there was a limit
    made_of: Mapping[str, str]  # see `makings`
    leaving: bool  # its removal has begun
    is_attached: bool  # to a network
    published: frozenset[tuple[str, int]]  # address and port of the host, for each that is in force: none unless it runs

    @property
    def runs(self) -> bool:
        return self.state is State.RUNNING

    @property
    def product(self) -> str:
        return self.owner.product


def digits(deployment: str) -> str:
    """Four hexadecimal digits for the deployment's name, used where room is short: in names of bridges and in MAC addresses."""
    return hashlib.sha256(deployment.encode()).hexdigest()[:4]


def mac_prefix(deployment: str) -> str:
    """The first four bytes (locally administered) of the MAC addresses of a deployment's engines; the guard matches them."""
    part = digits(deployment)
    return f"0e:48:{part[:2]}:{part[2:]}"


def mac_address(deployment: str, port: int) -> str:
    """The MAC address of an engine, unique on its host: every engine has its own port, even where ports are not published."""
    return f"{mac_prefix(deployment)}:{port >> 8:02x}:{port & 255:02x}"


def spare_name(deployment: str, ref: Ref) -> str:
    """The name of a container before its first start."""
    return f"{instance_name(deployment, ref.engine_id)}-{ref.mark}"


def engine_of(volume: Mapping[str, Any]) -> UUID | None:
    """The id of the engine of a volume in the daemon's list; None for a volume of no engine."""
    try:
        return UUID((volume["Labels"] or {})[ENGINE])
    except (KeyError, ValueError):
        return None


def read_owner(marks: Mapping[str, str]) -> Owner:
    """The owner in the labels of a container or a volume."""
    return Owner(marks.get(PRODUCT, ""), marks.get(USER, ""), marks.get(IMAGE, ""))


def labels(deployment: str, ref: Ref) -> list[str]:
    """The label filter for the containers of the incarnations with one number; their tokens may differ."""
    return [*engine_labels(deployment, ref.engine_id), f"{INCARNATION}={ref.incarnation}"]


def engine_labels(deployment: str, engine_id: UUID | None = None) -> list[str]:
    """The label filter for the containers of one engine, or of all engines of the deployment."""
    return [f"{DEPLOYMENT}={deployment}", *([f"{ENGINE}={engine_id}"] if engine_id else [])]


def check_image(name: str, image: Mapping[str, Any]) -> None:
    """Refuse an image with much text that the daemon repeats for each of its containers in every list. Raises ImageUnfit.

    `image`: the configuration of the image `name`.
    """
    repeated = [*(image.get("Labels") or ()), *(image.get("Entrypoint") or ()), *(image.get("Cmd") or ())]
    if sum(map(len, repeated)) > MOST_REPEATED:
        raise ImageUnfit(f"image {name}: the names of labels and the command exceed {MOST_REPEATED} characters; shorten them")


def parse(listed: Mapping[str, Any]) -> Found | None:
    """Read an entry of the daemon's list of containers; None if the container is not an engine's."""
    marks = listed["Labels"]
    try:
        ref = Ref(UUID(marks[ENGINE]), int(marks[INCARNATION]), marks.get(TOKEN, ""))
        port = int(marks[PORT])
    except (KeyError, ValueError):
        return None
    names = [name[1:] for name in listed["Names"] or ["/"] if name.count("/") == 1]
    state = STATES.get(listed["State"], State.EXITED)
    network = listed["HostConfig"]["NetworkMode"]
    networks = (listed.get("NetworkSettings") or {}).get("Networks") or {}
    if state is State.CREATED and not networks:  # another worker may be just making the container: its network comes last
        networks = {network: {}}
    return Found(
        listed["Id"],
        names[0],
        ref,
        read_owner(marks),
        listed["ImageID"],
        port,
        state,
        next(iter(networks), network),
        marks.get(REACH, "port"),
        int(marks.get(DISK, 0)),
        makings.noted(marks.get(MADE_OF, ""), networks, listed["ImageID"]),
        listed["State"] in ("removing", "dead"),
        bool(networks),
        frozenset((each.get("IP", ""), each["PublicPort"]) for each in listed.get("Ports") or () if "PublicPort" in each),
    )


def open_port(found: Found, options: Options) -> int | None:
    """The engine's port if a running container can be reached there, else None; for other containers, the next start's port.

    A container that was taken off its network runs on, and its port is free for a stranger.
    """
    if not found.runs:
        return found.port
    if options.reach == "container":
        return found.port if found.is_attached else None
    addresses = {ip for ip, port in found.published if port == found.port}
    bind = str(ip_address(options.bind))  # in the short form, which the daemon has, too
    is_reached = bind in ANY_ADDRESS or not addresses.isdisjoint({bind, *ANY_ADDRESS})
    return found.port if addresses and is_reached else None


def config(
    spec: Spec,
    network: str,
    options: Options,
    dns_options: Sequence[str] = (),
    image_labels: Iterable[str] = (),
    image_volumes: Iterable[str] = (),
    write_limits: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """The body of the daemon's `POST /containers/create`. `dns_options`: see `name_servers`. `write_limits`: see that module.

    `image_labels`: names of the image's labels. A container inherits the labels of its image. An engine's image comes from a
    stranger, and its labels might declare a client, or a service of somebody's compose project. Thus all of them are made empty.
    `image_volumes`: paths of the volumes that the image declares. Raises ImageUnfit.
    """
    return {
        "Image": spec.digest or spec.image,
        "User": options.user,
        "Env": [f"{name}={value}" for name, value in makings.environment(spec).items()],
        "Labels": {**dict.fromkeys(image_labels, ""), **_marks(spec, options)},
        "ExposedPorts": {EXPOSED: {}},
        "StopSignal": "SIGTERM",  # an image's own signal might end the engine at once, or not at all
        "Healthcheck": {"Test": ["NONE"]},  # the fleet probes engines; an image's own check would only add load
        "HostConfig": {
            "NetworkMode": network,
            "DnsOptions": list(dns_options),
            **_places(spec, image_volumes, options),
            **makings.hardening(),
            **makings.ceilings(spec.limits, options),
            **write_limits,
        },
        **_addressed(spec, network, options),
    }


def _owner(spec: Spec, options: Options) -> dict[str, str]:
    """The labels of everything that the engine owns."""
    return {DEPLOYMENT: options.deployment, ENGINE: str(spec.ref.engine_id), PRODUCT: spec.product, USER: spec.user_id}


def _marks(spec: Spec, options: Options) -> dict[str, str]:
    """The labels of the container."""
    return {
        **_owner(spec, options),
        IMAGE: spec.image,
        INCARNATION: str(spec.ref.incarnation),
        TOKEN: spec.ref.token,
        MADE_OF: makings.note(spec, options),
        PORT: str(spec.port),
        REACH: options.reach,
        DISK: str(volumes.disk_mb(spec.limits, options)),
    }


def _published(port: int, options: Options) -> dict[str, Any]:
    """The published port; empty where engines are reached by name, as all callers are on the engines' network."""
    return {EXPOSED: [{"HostIp": options.bind, "HostPort": str(port)}]} if options.reach == "port" else {}


def _addressed(spec: Spec, network: str, options: Options) -> dict[str, Any]:
    """The container's host name on its network, and, where engines are reached by name, the MAC address matched by the guard.

    Where engines are reached by ports, Docker derives the MAC address from the IP address. Neighbours' ARP caches then stay
    correct when an IP address gets a new owner: see `Guard.announce`.
    """
    endpoint: dict[str, Any] = {"Aliases": [instance_name(options.deployment, spec.ref.engine_id)]}
    if options.reach == "port":
        return {"NetworkingConfig": {"EndpointsConfig": {network: endpoint}}}
    mac = mac_address(options.deployment, spec.port)  # old daemons read the top-level key, new daemons the endpoint's
    return {"MacAddress": mac, "NetworkingConfig": {"EndpointsConfig": {network: {**endpoint, "MacAddress": mac}}}}


def _places(spec: Spec, image_volumes: Iterable[str], options: Options) -> dict[str, Any]:
    """What of the host an engine gets: its port, its volume and tmpfs, and its container runtime. Raises ImageUnfit."""
    return {
        "PortBindings": _published(spec.port, options),
        "Mounts": volumes.mounts(spec.ref.engine_id, _owner(spec, options), spec.limits, options),
        "Tmpfs": volumes.tmpfs(image_volumes, options),
        "Ulimits": [_ulimit("nofile", makings.OPEN_FILES), _ulimit("core", 0), volumes.file_size(spec.limits, options)],
        "Runtime": makings.runtime(spec.runtime, options),  # always named: the daemon's own default may be any other
    }


def _ulimit(name: str, most: int) -> dict[str, Any]:
    return {"Name": name, "Soft": most, "Hard": most}


def best(found: Sequence[Found]) -> Found | None:
    """An instance's running container, else the container with the shortest name (the engine's own); None for no containers.

    An instance has two containers if a worker unaware of the first start created a second container.
    """
    return max(found, key=lambda each: (each.runs, len(each.name) * -1), default=None)
