"""Addresses of the web server, for listening and for local calls, from `ORCH_BIND`: IPv6 with or without brackets."""

LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 (maps the address for all interfaces to the loopback address)


def bare(bind: str) -> str:
    """The address for sockets, without brackets."""
    return bind.strip("[]")


def listen(bind: str, port: int | str) -> str:
    """Address and port for gunicorn, IPv6 in brackets."""
    return f"{_bracketed(bare(bind))}:{port}"


def host(bind: str) -> str:
    """The address for URLs and `Host`; loopback if the server listens on all interfaces."""
    address = bare(bind)
    return _bracketed(LOOPBACK.get(address, address))


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address
