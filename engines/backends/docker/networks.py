"""The engines' networks: one bridge per product, and further ones before it is full.

Where engines are reached by a port of their host, Docker itself keeps the containers of one network apart (enable_icc=false).
Where they are reached by name, their clients are on the network too, and the guard keeps engines from opening connections there.
A network of one kind is not used for the other.

An engine gets its network when its container is made, and counts there in whatever state it is: a network cannot overflow when
sleeping engines wake up. Between the count and the container others may make theirs, each of them one: a network takes
`network_size`, and at most as many more as are made at a time (`ORCH_MAX_BOOTS`; the settings keep both together below 900). What
up to 16 processes remember of a count fills its first half only, and they forget it before others can have filled the second.

Names: `<prefix>-<product>`, then `<prefix>-<product>.2` and so on. A network under such a name that was not made as ours are (see
`config`) is passed over, since engines on it would not be kept apart.
"""

import hashlib
import ipaddress
import threading
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import structlog
from docker.errors import APIError

from engines.backends.base import NetworkFull, instance_name
from engines.backends.docker.clients import Clients
from engines.backends.docker.containers import DEPLOYMENT, PRODUCT, Found
from engines.backends.docker.daemon import Daemon, NotFound, named, said_by
from engines.backends.docker.guard import bridge_prefix
from engines.backends.docker.options import Options

log = structlog.get_logger(__name__)

BRIDGE_NAME = "com.docker.network.bridge.name"
ICC = "com.docker.network.bridge.enable_icc"
MOST = 100  # networks of one product
REMEMBERED = 32  # a process makes up to so many'th of a network's engines before it counts again, and none once it is half full
REMEMBERED_S = 2.0  # nor does it go by a count of longer ago


class _Room(NamedTuple):
    """What we remember of a product's network."""

    network: str
    left: int  # engines that we still make there before we count again
    counted: float  # by time.monotonic()


class Networks:
    """The networks of one deployment on one daemon."""

    def __init__(self, daemon: Daemon, options: Options) -> None:
        self._daemon = daemon
        self._options = options
        self.clients = Clients(daemon, options)
        self._lock = threading.Lock()
        self._room: dict[str, _Room] = {}  # by product

    def place(self, product: str) -> str:
        """The network for a new container of the product, made if need be. Raises NetworkFull."""
        now = time.monotonic()
        with self._lock:
            known = self._room.get(product)
            if known and known.left > 0 and now - known.counted < REMEMBERED_S:
                self._room[product] = known._replace(left=known.left - 1)
                return known.network
        name, room = self._look_for_room(product)
        size = self._options.network_size
        with self._lock:
            self._room[product] = _Room(name, size // REMEMBERED if room > size // 2 else 0, now)
        return name

    def forget(self, product: str) -> None:
        """Look again at the next `place`: what we remember of the product's networks has turned out to be wrong."""
        with self._lock:
            self._room.pop(product, None)

    def restore(self, found: Found) -> None:
        """Make the network of a container again, as somebody has removed it. The container still means the old one by its id."""
        self.forget(found.product)
        self._create(found.network, found.product)
        self._attach(found, found.network)

    def move(self, found: Found) -> None:
        """Put a container that does not run on another network of its product, as its own is full. Raises NetworkFull."""
        self.forget(found.product)
        name, _ = self._look_for_room(found.product, but=found.network)
        log.warning("network_full", network=found.network, moved_to=name, engine_id=str(found.ref.engine_id))
        self._attach(found, name)

    def bridge_of(self, name: str) -> str:
        """The host's interface for a network of ours."""
        return str(self._daemon.ask(lambda api: api.inspect_network(name))["Options"][BRIDGE_NAME])

    def tidy(self, used: set[str]) -> int:
        """Remove this deployment's networks that are not in `used` and have nothing but clients attached; how many."""
        mine = {"label": [f"{DEPLOYMENT}={self._options.deployment}"]}
        removed = 0
        for network in self._daemon.ask(lambda api: api.networks(filters=mine)):
            if network["Name"] in used:
                continue
            self.forget(network["Labels"].get(PRODUCT, ""))
            self.clients.detach(network["Name"])
            removed += self._remove(network["Id"])
        self.clients.attach_all()  # an engine may have come to one that we were about to remove
        return removed

    def _attach(self, found: Found, name: str) -> None:
        """Put a container that does not run on this network instead of the one it has."""
        alias = instance_name(self._options.deployment, found.ref.engine_id)
        self._daemon.ask(lambda api: api.disconnect_container_from_network(found.id, found.network, force=True))
        self._daemon.ask(lambda api: api.connect_container_to_network(found.id, name, aliases=[alias]))

    def _remove(self, network_id: str) -> bool:
        try:
            self._daemon.ask(lambda api: api.remove_network(network_id))
        except NotFound:
            return False
        except APIError as refused:
            if "active endpoints" not in said_by(refused):
                raise
            return False
        return True

    def _look_for_room(self, product: str, but: str = "") -> tuple[str, int]:
        """The first network of the product with room, and how much."""
        for number in range(1, MOST + 1):
            name = network_name(self._options, product, number)
            if name == but:
                continue
            room = self._room_of(name, product)
            if room > 0:
                return name, room
        raise NetworkFull(f"{MOST} networks of product {product} are full")

    def _room_of(self, name: str, product: str) -> int:
        """How many more containers the network takes; it is made if there is none."""
        try:
            network = self._daemon.ask(lambda api: api.inspect_network(name))
        except NotFound:
            self._create(name, product)
            network = self._daemon.ask(lambda api: api.inspect_network(name))
        if not is_safe(network, self._options):
            log.warning("network_passed_over", network=name, reason="it was not made for engines")
            return 0
        attached = self._daemon.ask(lambda api: api.containers(all=True, filters={"network": [name]}))
        return min(self._options.network_size, _addresses(network)) - len(attached)

    def _create(self, name: str, product: str) -> None:
        """Make the network; another worker may be doing the same, and its bridge's name then is taken."""
        try:
            self._daemon.ask(lambda api: api.create_network(name, **config(self._options, name, product)))
        except APIError as refused:
            if not any(words in said_by(refused) for words in ("already exists", "same bridge name")):
                raise named(refused, f"network {name}") from refused  # a lack of addresses comes as 404 too
        self.clients.attach(name, product)


def network_name(options: Options, product: str, number: int) -> str:
    """The name of a product's `number`th network; a slug has no dots, so no two products share one."""
    return f"{options.network}-{product}" if number == 1 else f"{options.network}-{product}.{number}"


def config(options: Options, name: str, product: str) -> dict[str, Any]:
    """What `APIClient.create_network(name, ...)` has to be given; more (as `ipam`) may be added."""
    bridge = bridge_prefix(options.deployment) + hashlib.sha256(name.encode()).hexdigest()[:8]
    return {
        "driver": "bridge",
        "check_duplicate": True,
        "options": {BRIDGE_NAME: bridge, ICC: _icc(options)},
        "labels": {DEPLOYMENT: options.deployment, PRODUCT: product},
    }


def is_safe(network: Mapping[str, Any], options: Options) -> bool:
    """Whether the guard's rules hold on the network, and it is of the kind that this deployment's engines are on."""
    chosen = network.get("Options") or {}
    is_guarded = chosen.get(BRIDGE_NAME, "").startswith(bridge_prefix(options.deployment))
    return network["Driver"] == "bridge" and chosen.get(ICC) == _icc(options) and is_guarded


def _icc(options: Options) -> str:
    """Whether Docker lets the containers of a network reach each other. Clients are containers, so they need it."""
    return "true" if options.reach == "container" else "false"


def _addresses(network: Mapping[str, Any]) -> int:
    """How many containers the network's IPv4 subnet has addresses for: all but its own, the gateway's and the broadcast's."""
    subnets = [ipaddress.ip_network(pool["Subnet"]) for pool in network["IPAM"]["Config"] or [] if "." in pool.get("Subnet", "")]
    return sum(max(0, subnet.num_addresses - 3) for subnet in subnets)
