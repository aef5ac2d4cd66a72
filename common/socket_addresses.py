"""Where the web server listens, and where it is called from its own machine: `ORCH_BIND`, IPv6 with or without brackets."""

LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 (what stands for every address, and the one to call it by)


def bare(bind: str) -> str:
    """The address as sockets want it."""
    return bind.strip("[]")


def listen(bind: str, port: int | str) -> str:
    """Address and port as gunicorn wants them."""
    return f"{_bracketed(bare(bind))}:{port}"


def host(bind: str) -> str:
    """The address as it stands in a URL and in `Host`."""
    address = bare(bind)
    return _bracketed(LOOPBACK.get(address, address))


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address
