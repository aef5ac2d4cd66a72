"""The client's address and scheme, as trusted proxies report them; what others report is ignored."""

from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any

from common import ip_addresses
from common.settings import settings

_FORWARDED = ("HTTP_X_FORWARDED_FOR", "HTTP_X_FORWARDED_PROTO")


def is_trusted(address: str) -> bool:
    """Whether the address is of a proxy in ORCH_TRUSTED_PROXIES. Raises ValueError if the text is not an address."""
    networks = _networks(settings.ENV.trusted_proxies)
    if not networks:
        return False
    parsed = ip_address(address.partition("%")[0])
    parsed = getattr(parsed, "ipv4_mapped", None) or parsed
    return any(parsed in network for network in networks)


@lru_cache(maxsize=8)
def _networks(listed: str) -> tuple[IPv4Network | IPv6Network, ...]:
    return tuple(ip_network(part.strip()) for part in listed.split(",") if part.strip())


def believe(environ: dict[str, Any]) -> None:
    """Make REMOTE_ADDR the client's address. Remove the forwarder's headers unless the peer is a trusted proxy.

    Every proxy appends the address of its own peer to `X-Forwarded-For`. So the client is the last address that is not a trusted
    proxy's; addresses before it may be the client's invention.
    """
    if not is_trusted(environ["REMOTE_ADDR"]):
        for name in _FORWARDED:
            environ.pop(name, None)
        return
    for part in reversed(environ.get(_FORWARDED[0], "").split(",")):
        address = ip_addresses.parse(part.strip())
        if address is None:
            return
        environ["REMOTE_ADDR"] = address
        if not is_trusted(address):
            return
