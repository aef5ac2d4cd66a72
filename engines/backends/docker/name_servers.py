"""The name servers of an engine's container: the host's own servers where Docker's name server is slow to set up.

On a product's network Docker gives every container a name server at 127.0.0.11. Docker's name server knows the network's
containers by name and forwards all further queries to the host's name servers. An engine calls no container of its network, and
thus needs none of the names. Docker 20.10 runs its own binary once and `iptables` eleven times to set the name server up: 70 to
110 ms of every start. docs/decisions/0026 has the measurements and the rejected alternatives.
"""

import ipaddress

from engines.backends.docker.daemon import Daemon
from engines.backends.docker.guard import Guard

SLOW = "1.41"  # API version of Docker 20.10, the only version whose name server is left out
NONE = ";ndots"  # a resolv.conf option without effect; Docker 20.10 cannot parse it, and leaves its name server out


def options(daemon: Daemon, guard: Guard) -> list[str]:
    """The options of resolv.conf for a new container; empty for Docker's default. Raises BackendUnavailable."""
    return choose(guard.resolv_conf()) if daemon.api_version() == SLOW else []


def choose(resolv_conf: str) -> list[str]:
    """The options to leave Docker's name server out, from the text of the host's resolv.conf, whose own options are kept.

    Without Docker's name server a container queries the host's name servers directly. The result is empty (Docker's name server
    stays) if the host lists no name server, or a server on loopback, which only the host itself can reach.
    """
    lines = [line.split() for line in resolv_conf.splitlines()]
    servers = [words[1] for words in lines if words[:1] == ["nameserver"] and len(words) > 1]
    if not servers or any(map(_is_local, servers)):
        return []
    return [NONE, *next((words[1:] for words in reversed(lines) if words[:1] == ["options"]), [])]


def _is_local(address: str) -> bool:
    """Whether only the host itself reaches the address; True also for text which is no address."""
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return True
