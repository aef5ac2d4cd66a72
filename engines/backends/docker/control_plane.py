"""Hosts of the control plane's servers, read from the URLs in the settings; the guard denies engines access to all of them."""

import ipaddress
import socket
import time
from collections.abc import Iterable
from urllib.parse import urlsplit

import structlog
from psycopg.conninfo import conninfo_to_dict

log = structlog.get_logger(__name__)

LOOK_UP_S = 60.0  # seconds between two look-ups of the hosts' addresses, as a server may move


def hosts(*urls: str) -> tuple[str, ...]:
    """The hosts in URLs of PostgreSQL (maybe several per URL), Redis and Docker; none for sockets and empty URLs."""
    found: set[str] = set()
    for url in urls:
        if url.startswith(("postgresql:", "postgres:")):
            given = conninfo_to_dict(url)
            found |= {name for key in ("host", "hostaddr") for name in str(given.get(key) or "").split(",")}
        elif url:
            found.add(urlsplit(url).hostname or "")
    return tuple(sorted(name for name in found if name and not name.startswith(("/", "@"))))


class Addresses:
    """The IPv4 addresses of hosts, looked up again after `LOOK_UP_S`.

    IPv6 addresses are left out because engines have no IPv6. Loopback addresses are left out because every engine
    has a loopback of its own.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = tuple(names)
        self._known: dict[str, frozenset[str]] = {}
        self._next_look = 0.0

    def now(self) -> frozenset[str]:
        """The addresses of all hosts; a host whose look-up fails keeps its last known addresses."""
        if time.monotonic() >= self._next_look:
            self._known |= {name: found for name in self._names if (found := _look_up(name)) is not None}
            self._next_look = time.monotonic() + LOOK_UP_S
        return frozenset().union(*self._known.values())


def _look_up(name: str) -> frozenset[str] | None:
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_STREAM)}
    except OSError as error:
        log.warning("control_plane_unresolved", host=name, error=str(error))
        return None
    return frozenset(address for address in found if not _is_own(address))


def _is_own(address: str) -> bool:
    parsed = ipaddress.ip_address(address)
    return parsed.is_loopback or parsed.is_unspecified
