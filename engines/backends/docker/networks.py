"""The engines' networks: one bridge per product, and further bridges before the first is full.

Where engines are reached by a port of their host, Docker itself isolates the containers of one network (enable_icc=false). Where
engines are reached by name, clients are on the network, too, and the guard keeps engines from opening connections. A network made
for one way of reaching engines is never used for the other way.

An engine gets its network when its container is made. A container counts on its network in every state: a network cannot overflow
when sleeping engines wake up. Between the count and the creation of a container, other workers may create one container each.
Thus a network takes `network_size` containers, plus at most the number of containers made at a time (`ORCH_MAX_BOOTS`; the
settings keep the sum below 900). A process may also place engines by a remembered count, without a new count. Up to 16 processes
fill at most the first half of a network by remembered counts, and forget a count before other workers can have filled the second
half.

Names: `<prefix>-<product>`, then `<prefix>-<product>.2` and `.3`, up to `MOST`. A network with a fitting name but without the
properties of `config` is passed over, since engines on the network would not be isolated.
"""

import hashlib
import ipaddress
import threading
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import structlog
from docker.errors import APIError

from engines.backends.base import NetworkFull, NetworkUnguarded, instance_name
from engines.backends.docker.clients import Clients
from engines.backends.docker.containers import DEPLOYMENT, PRODUCT, Found
from engines.backends.docker.daemon import Daemon, NotFound, named, said_by
from engines.backends.docker.options import Options
from engines.backends.docker.ruleset import bridge_prefix

log = structlog.get_logger(__name__)

BRIDGE_NAME = "com.docker.network.bridge.name"
ICC = "com.docker.network.bridge.enable_icc"
MOST = 100  # networks per product
REMEMBERED = 32  # by one count a process places up to 1/32 of a network's engines, and none in a half full network
REMEMBERED_S = 2.0  # seconds until a remembered count expires


class _Room(NamedTuple):
    """The remembered count of a product's network."""

    network: str
    left: int  # engines placed there before the next count
    counted: float  # time.monotonic() of the count


class Networks:
    """The networks of one deployment on one daemon."""

    def __init__(self, daemon: Daemon, options: Options) -> None:
        self._daemon = daemon
        self._options = options
        self.clients = Clients(daemon, options)
        self._lock = threading.Lock()
        self._room: dict[str, _Room] = {}  # by product

    def place(self, product: str) -> str:
        """The name of the network for a new container of the product; creates a missing network. Raises NetworkFull."""
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
        """Drop a remembered count proven wrong: the next `place` counts the product's networks again."""
        with self._lock:
            self._room.pop(product, None)

    def restore(self, found: Found) -> None:
        """Create a container's removed network again and attach the container, which still refers to the old network's id."""
        self.forget(found.product)
        self._create(found.network, found.product)
        self._attach(found, found.network)

    def move(self, found: Found) -> None:
        """Move a stopped container from its full network to another network of its product. Raises NetworkFull."""
        self.forget(found.product)
        name, _ = self._look_for_room(found.product, but=found.network)
        log.warning("network_full", network=found.network, moved_to=name, engine_id=str(found.ref.engine_id))
        self._attach(found, name)

    def bridge_of(self, name: str) -> str:
        """The name of the host's bridge interface of a network. Raises NetworkUnguarded for a bridge that the guard ignores."""
        options = self._daemon.ask(lambda api: api.inspect_network(name))["Options"] or {}
        bridge = str(options.get(BRIDGE_NAME, ""))
        if not bridge.startswith(bridge_prefix(self._options.deployment)):
            raise NetworkUnguarded(f"network {name} was not made for engines: the guard's rules do not cover the network")
        return bridge

    def bridges(self) -> dict[str, str]:
        """The product of each guarded bridge of the deployment, by the bridge's name; either way of reaching engines counts."""
        mine = {"label": [f"{DEPLOYMENT}={self._options.deployment}"]}
        found = self._daemon.ask(lambda api: api.networks(filters=mine))
        named = {(network["Options"] or {}).get(BRIDGE_NAME, ""): network["Labels"].get(PRODUCT, "") for network in found}
        prefix = bridge_prefix(self._options.deployment)
        return {bridge: product for bridge, product in named.items() if bridge.startswith(prefix)}

    def tidy(self, used: set[str]) -> int:
        """Remove the deployment's networks not in `used` with only clients attached; returns the number of removed networks."""
        mine = {"label": [f"{DEPLOYMENT}={self._options.deployment}"]}
        removed = 0
        for network in self._daemon.ask(lambda api: api.networks(filters=mine)):
            if network["Name"] in used:
                continue
            self.forget(network["Labels"].get(PRODUCT, ""))
            self.clients.detach(network["Name"])
            removed += self._remove(network["Id"])
        self.clients.attach_all()  # a network stays if a new engine joined in the meantime: its clients were detached above
        return removed

    def _attach(self, found: Found, name: str) -> None:
        """Attach a stopped container to network `name`, in place of its present network."""
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
        """The name of the product's first network with room, and the number of free places; skips network `but`."""
        for number in range(1, MOST + 1):
            name = network_name(self._options, product, number)
            if name == but:
                continue
            room = self._room_of(name, product)
            if room > 0:
                return name, room
        raise NetworkFull(f"all {MOST} networks of product {product} are full")

    def _room_of(self, name: str, product: str) -> int:
        """The number of free places on the network; creates a missing network."""
        try:
            network = self._daemon.ask(lambda api: api.inspect_network(name))
        except NotFound:
            self._create(name, product)
            network = self._daemon.ask(lambda api: api.inspect_network(name))
        if not is_safe(network, self._options):
            log.warning("network_passed_over", network=name, reason="the network was not made for engines")
            return 0
        attached = self._daemon.ask(lambda api: api.containers(all=True, filters={"network": [name]}))
        return min(self._options.network_size, _addresses(network)) - len(attached)

    def _create(self, name: str, product: str) -> None:
        """Create the network; a taken network or bridge name is no error, as another worker may have been faster."""
        try:
            self._daemon.ask(lambda api: api.create_network(name, **config(self._options, name, product)))
        except APIError as refused:
            if not any(words in said_by(refused) for words in ("already exists", "same bridge name")):
                raise named(refused, f"network {name}") from refused  # the daemon reports a lack of addresses with 404, too
        self.clients.attach(name, product)


def network_name(options: Options, product: str, number: int) -> str:
    """The name of a product's `number`th network (from 1); slugs have no dots, thus no two products share a name."""
    return f"{options.network}-{product}" if number == 1 else f"{options.network}-{product}.{number}"


def config(options: Options, name: str, product: str) -> dict[str, Any]:
    """The keyword arguments for `APIClient.create_network(name, ...)`; a caller may add more, for instance `ipam`."""
    bridge = bridge_prefix(options.deployment) + hashlib.sha256(name.encode()).hexdigest()[:8]
    return {
        "driver": "bridge",
        "check_duplicate": True,
        "options": {BRIDGE_NAME: bridge, ICC: _icc(options)},
        "labels": {DEPLOYMENT: options.deployment, PRODUCT: product},
    }


def is_safe(network: Mapping[str, Any], options: Options) -> bool:
    """Whether the guard's rules cover the network, and the network fits the deployment's way of reaching engines."""
    chosen = network.get("Options") or {}
    is_guarded = chosen.get(BRIDGE_NAME, "").startswith(bridge_prefix(options.deployment))
    return network["Driver"] == "bridge" and chosen.get(ICC) == _icc(options) and is_guarded


def _icc(options: Options) -> str:
    """Docker's `enable_icc` for a network: true where clients, which are containers too, must reach engines."""
    return "true" if options.reach == "container" else "false"


def _addresses(network: Mapping[str, Any]) -> int:
    """The number of IPv4 addresses for containers: all of the subnet but the network's, the gateway's and the broadcast's."""
    subnets = [ipaddress.ip_network(pool["Subnet"]) for pool in network["IPAM"]["Config"] or [] if "." in pool.get("Subnet", "")]
    return sum(max(0, subnet.num_addresses - 3) for subnet in subnets)
