"""What the engines of each product may reach, told to the guard's program per bridge.

The guard's program knows the bridges only while it runs, and a bridge that it does not know is closed. So `prepare` tells the
guard about an engine's bridge before the engine starts, unless this process has told the same guard the same before. `confine`,
called every few seconds by one process of the deployment, tells the guard about all bridges as soon as the guard knows
something else.
"""

from collections.abc import Callable, Mapping, Set

from engines.backends.base import Egress
from engines.backends.docker import ruleset
from engines.backends.docker.guard import Guard
from engines.backends.docker.networks import Networks


class Confinement:
    """The bridges of one deployment on one daemon."""

    def __init__(self, guard: Guard, networks: Networks) -> None:
        self._guard = guard
        self._networks = networks
        self._wanted: dict[str, Egress] = {}  # by product
        self._told: dict[str, tuple[str, str]] = {}  # by network: the guard's run, and the chain

    def want(self, product: str, egress: Egress) -> None:
        """Note what a product's engines may reach, for `prepare`."""
        self._wanted[product] = egress

    def prepare(self, network: str, product: str) -> None:
        """Open a network before an engine starts on it; the network stays as it is if the product's rule was not noted here.

        Raises NetworkUnguarded, BackendUnavailable, and NotFound for a missing network.
        """
        egress = self._wanted.get(product)
        if egress is None or self._told.get(network) == (self._guard.seen, ruleset.chain_of(egress)):
            return
        self._tell({self._networks.bridge_of(network): egress})
        self._told[network] = (self._guard.seen, ruleset.chain_of(egress))

    def confine(self, look_up: Callable[[Set[str]], Mapping[str, Egress]]) -> bool:
        """Tell the guard about all bridges if it knows something else, and return whether it did. A guard that does not run, or
        has other rules than this worker, is left to the next `Guard.check`.
        """
        products = self._networks.bridges()
        if not products or not self._guard.runs():
            return False
        found = look_up(set(products.values()))
        self._wanted |= found
        wanted = {bridge: found.get(product, "none") for bridge, product in products.items()}
        if self._guard.knows() == ruleset.digest({bridge: ruleset.chain_of(egress) for bridge, egress in wanted.items()}):
            return False
        self._tell(wanted)
        return True

    def _tell(self, wanted: Mapping[str, Egress]) -> None:
        chains = {ruleset.chain_of(egress): chain for egress in wanted.values() if (chain := ruleset.chain(egress))}
        self._guard.tell({bridge: ruleset.chain_of(egress) for bridge, egress in wanted.items()}, chains)
