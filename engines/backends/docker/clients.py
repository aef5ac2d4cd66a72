"""Clients: containers calling engines by name, declared by two labels and attached to their products' networks by a worker.

`roundhouse.client` names the deployment whose engines the client calls. `roundhouse.products` lists the slugs of the products,
separated by commas, or `*` for all products, as Roundhouse's own workers have. A client is attached when a network is made, when
a worker starts, and whenever networks are tidied. A client container recreated in the meantime is then attached again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from docker.errors import APIError

from engines.backends.docker.containers import CLIENT, DEPLOYMENT, ENGINE, PRODUCT, PRODUCTS
from engines.backends.docker.daemon import Daemon, NotFound, is_conflict, said_by
from engines.backends.docker.options import Options

log = structlog.get_logger(__name__)

EVERY = "*"


@dataclass(frozen=True)
class Client:
    """A client's container as listed by the daemon; `networks` has names, also of networks joined only at the next start."""

    id: str
    name: str
    products: frozenset[str]
    networks: frozenset[str]
    runs: bool

    def may_call(self, product: str) -> bool:
        return bool(self.products & {product, EVERY})


class Clients:
    """The clients of one deployment on one daemon."""

    def __init__(self, daemon: Daemon, options: Options) -> None:
        self._daemon = daemon
        self._options = options

    def attach(self, network: str, product: str) -> int:
        """Attach all running clients of the product to a network of the product; returns how many were newly attached.

        A failure is only logged, to not delay an engine: the client is tried again when networks are tidied.
        """
        return self._attach(self._running(), network, product)

    def attach_all(self) -> int:
        """Like `attach`, for every network of the deployment."""
        clients = self._running()
        mine = {"label": [f"{DEPLOYMENT}={self._options.deployment}"]}
        networks = self._daemon.ask(lambda api: api.networks(filters=mine)) if clients else []
        return sum(self._attach(clients, network["Name"], network["Labels"].get(PRODUCT, "")) for network in networks)

    def detach(self, network: str) -> None:
        """Detach every client from a network before its removal: a stopped client could not start without the network."""
        for client in self._all():
            if network in client.networks:
                self._disconnect(client, network)

    def _attach(self, clients: Sequence[Client], network: str, product: str) -> int:
        missing = [client for client in clients if client.may_call(product) and network not in client.networks]
        return sum(self._connect(client, network) for client in missing)

    def _running(self) -> Sequence[Client]:
        """The running clients; empty where engines are reached by ports."""
        return [client for client in self._all() if client.runs] if self._options.reach == "container" else []

    def _all(self) -> Sequence[Client]:
        """All clients, running or not; an engine never counts as a client, whatever labels its image has."""
        mine = {"label": [f"{CLIENT}={self._options.deployment}"]}
        found = self._daemon.ask(lambda api: api.containers(all=True, filters=mine))
        return [_parse(listed) for listed in found if ENGINE not in listed["Labels"]]

    def _connect(self, client: Client, network: str) -> bool:
        try:
            self._daemon.ask(lambda api: api.connect_container_to_network(client.id, network))
        except APIError as refused:
            if "already exists in network" not in said_by(refused):  # attached by a faster worker
                log.warning("client_not_attached", container=client.name, network=network, error=said_by(refused))
            return False
        log.info("client_attached", container=client.name, network=network)
        return True

    def _disconnect(self, client: Client, network: str) -> None:
        try:
            self._daemon.ask(lambda api: api.disconnect_container_from_network(client.id, network, force=True))
        except APIError as refused:
            if not (isinstance(refused, NotFound) or is_conflict(refused) or "is not connected" in said_by(refused)):
                raise


def _parse(listed: Mapping[str, Any]) -> Client:
    networks = (listed.get("NetworkSettings") or {}).get("Networks") or {}
    products = frozenset(part.strip() for part in listed["Labels"].get(PRODUCTS, "").split(",")) - {""}
    return Client(listed["Id"], (listed["Names"] or ["/"])[0][1:], products, frozenset(networks), listed["State"] == "running")
