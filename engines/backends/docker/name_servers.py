"""Which name servers an engine asks: its host's own, where Docker's is slow.

On a product's network Docker gives every container a name server at 127.0.0.11, which knows the network's containers by name and
passes other questions on to the host's. An engine has nobody to call there. Docker 20.10 runs itself once and `iptables` eleven
times for it, 70 to 110 ms of every start. docs/decisions/0026 has the figures, and what else was tried.
"""

import ipaddress

from engines.backends.docker.daemon import Daemon
from engines.backends.docker.guard import Guard

SLOW = "1.41"  # the API's version of Docker 20.10, the only one that is asked to go without
NONE = ";ndots"  # an option of resolv.conf that means nothing: Docker 20.10 cannot read it, and leaves its name server out


def options(daemon: Daemon, guard: Guard) -> list[str]:
    """The options of resolv.conf for a new container; empty: what Docker does by itself. Raises BackendUnavailable."""
    return choose(guard.resolv_conf()) if daemon.api_version() == SLOW else []


def choose(resolv_conf: str) -> list[str]:
    """The same from the host's resolv.conf, whose own options are kept.

    Without Docker's name server a container asks the host's directly, so none of those may be reachable from the host alone.
    """
    lines = [line.split() for line in resolv_conf.splitlines()]
    servers = [words[1] for words in lines if words[:1] == ["nameserver"] and len(words) > 1]
    if not servers or any(map(_is_local, servers)):
        return []
    return [NONE, *next((words[1:] for words in reversed(lines) if words[:1] == ["options"]), [])]


def _is_local(address: str) -> bool:
    """Whether only the host itself reaches it; so too what is no address."""
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return True
