"""Engines as containers of one Docker daemon.

Modules: `backend` implements the verbs of the contract. `containers` builds the configuration of a container, `networks` picks
its network, `clients` attaches calling containers to networks, `name_servers` picks DNS servers, `write_limits` bounds writes to
the disk. `guard` isolates engines with nftables: `ruleset` writes the rules, `resident` is the program in the guard's container,
`egress` tells that program what products may reach, `control_plane` resolves the addresses denied to engines. `daemon` calls the
Docker daemon and translates its refusals. `options` holds a deployment's settings.
"""

from engines.backends.docker.backend import DockerBackend
from engines.backends.docker.options import Options

__all__ = ["DockerBackend", "Options"]
