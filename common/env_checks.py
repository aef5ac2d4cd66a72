"""Checks of single settings in `common.env`. Each raises ValueError with the name of the setting and what its value must be."""

import re
from collections.abc import Sequence
from ipaddress import ip_address, ip_network

from common import destinations, image_references

RUNTIME_PATTERN = "[A-Za-z0-9][A-Za-z0-9._-]{0,63}"


def proxies(listed: str) -> None:
    """ORCH_TRUSTED_PROXIES: addresses and networks."""
    for part in destinations.split(listed):
        try:
            ip_network(part)
        except ValueError as error:
            raise ValueError(f"ORCH_TRUSTED_PROXIES: {part!r} is not an IP address or a network such as 10.0.0.0/8") from error


def image(reference: str) -> None:
    """ORCH_ENGINE_IMAGE: an image reference."""
    try:
        image_references.parse(reference)
    except ValueError as error:
        raise ValueError(f"ORCH_ENGINE_IMAGE {error}") from error


def bind(address: str) -> None:
    """ORCH_ENGINE_BIND: an IP address."""
    try:
        ip_address(address)
    except ValueError as error:
        raise ValueError("ORCH_ENGINE_BIND must be an IP address") from error


def url_template(template: str) -> None:
    """ORCH_ENGINE_URL_TEMPLATE: text with no other fields than {port} and {container}."""
    try:
        template.format(port=0, container="")
    except (LookupError, ValueError, AttributeError) as error:
        raise ValueError("ORCH_ENGINE_URL_TEMPLATE may contain {port} and {container}, but no other braces") from error


def denied(listed: str) -> None:
    """ORCH_ENGINE_EGRESS_DENY: ranges of IPv4 addresses."""
    for part in destinations.split(listed):
        if not destinations.is_network(part):
            raise ValueError(f"ORCH_ENGINE_EGRESS_DENY: {part!r} is not a range of IPv4 addresses such as 10.0.0.0/8")


def allowed(listed: str) -> None:
    """ORCH_ENGINE_EGRESS_ALLOW: ranges of IPv4 addresses, each perhaps with ports."""
    for part in destinations.split(listed):
        if not destinations.is_network(part.partition(":")[0]) or not destinations.is_destination(part):
            raise ValueError(
                f"ORCH_ENGINE_EGRESS_ALLOW: {part!r} is not a range of IPv4 addresses, with or without ports, such as"
                " 10.0.5.0/24 or 10.0.5.7:8080"
            )


def runtimes(names: Sequence[str]) -> None:
    """ORCH_ENGINE_RUNTIMES: at least one name of a container runtime."""
    if not names:
        raise ValueError("ORCH_ENGINE_RUNTIMES must name a container runtime, such as runc")
    for name in names:
        if not re.fullmatch(RUNTIME_PATTERN, name):
            raise ValueError(f"ORCH_ENGINE_RUNTIMES: {name!r} is not the name of a container runtime, such as runc")


def master_keys(keys: Sequence[str]) -> None:
    """ORCH_MASTER_KEY: Fernet keys, 32 bytes in base64 each. (Fernet itself ignores all text after the first `=`.)"""
    for number, key in enumerate(keys, 1):
        if not re.fullmatch(r"[A-Za-z0-9_+/-]{43}=", key):
            raise ValueError(f"ORCH_MASTER_KEY: key {number} of {len(keys)} is not a Fernet key")
