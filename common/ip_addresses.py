"""IP addresses in text: of callers, and typed by people."""

from ipaddress import IPv6Address, ip_address


def parse(text: str) -> str | None:
    """The address in the form that PostgreSQL's type `inet` accepts, or None if `text` is no address.

    A zone is left out. An IPv4 address is written as IPv4, also where it comes from a socket that listens on IPv6.
    """
    try:
        found = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return str(getattr(found, "ipv4_mapped", None) or found)


def owner(text: str) -> str:
    """The address that a caller is counted under: an IPv6 client owns a whole /64 network. Raises ValueError for no address."""
    address = ip_address(text.partition("%")[0])
    if isinstance(address, IPv6Address):
        return str(address.ipv4_mapped or IPv6Address(int(address) >> 64 << 64))
    return str(address)
