"""Destinations: where connections may lead, as `host:port`, `host:first-last` or `host:port/protocol`.

A host is an IPv4 address, an IPv4 network such as `203.0.113.0/24`, or a DNS name with a dot. The protocol is `tcp` or `udp`;
without one it is `tcp`. Examples: `api.example.com:443`, `203.0.113.0/24:8000-8010`, `192.0.2.1:53/udp`.
"""

import re
from dataclasses import dataclass
from ipaddress import IPv4Network

_PORTS = r"(?P<first>[0-9]{1,5})(?:-(?P<last>[0-9]{1,5}))?(?:/(?P<protocol>tcp|udp))?"
_DESTINATION = re.compile(rf"(?P<host>[^:/\s]+(?:/[0-9]{{1,2}})?)(?::{_PORTS})?")
_LABEL = "[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"(?:{_LABEL}\.)+[a-z](?:[a-z0-9-]{{0,61}}[a-z0-9])?")  # a last label of digits would be an address
_LONGEST_NAME = 253


@dataclass(frozen=True)
class Destination:
    """A network or a name, with its ports. `first` is 0 for all ports of all protocols."""

    host: str  # a network with its prefix length, or a name in lower case
    first: int = 0
    last: int = 0
    protocol: str = ""

    @property
    def is_name(self) -> bool:
        return "/" not in self.host


def parse(text: str) -> Destination:
    """The destination in `text`, whose ports may be left out for a network. Raises ValueError."""
    found = _DESTINATION.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is not of the form host:port")
    host = _host(found["host"])
    if found["first"] is None:
        destination = Destination(host)
        if destination.is_name:
            raise ValueError(f"{text!r} has no port")
        return destination
    first, last = int(found["first"]), int(found["last"] or found["first"])
    if not 1 <= first <= last <= 65535:
        raise ValueError(f"{text!r} has no port, or no range of ports, from 1 to 65535")
    return Destination(host, first, last, found["protocol"] or "tcp")


def _host(text: str) -> str:
    name = text.lower()
    if len(name) <= _LONGEST_NAME and _NAME.fullmatch(name):
        return name
    return str(IPv4Network(text, strict=False))


def is_destination(text: str) -> bool:
    """Whether `parse` takes the text."""
    try:
        parse(text)
    except ValueError:
        return False
    return True


def is_network(text: str) -> bool:
    """Whether the text is an IPv4 address or network with a prefix length; nftables does not accept a netmask."""
    try:
        return not parse(text).first
    except ValueError:
        return False


def split(text: str) -> list[str]:
    """The parts of a comma-separated list, without empty parts."""
    return [part for part in map(str.strip, text.split(",")) if part]
