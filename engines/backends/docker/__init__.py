"""Engines as containers of one Docker daemon.

`backend` has the verbs; `containers` says what a container is made of, `networks` where it is attached, `name_servers` whom it
asks for names, `guard` what keeps it there, `daemon` how the daemon is asked and what its refusals are called here, and `options`
what a deployment may choose.
"""

from engines.backends.docker.backend import DockerBackend
from engines.backends.docker.options import Options

__all__ = ["DockerBackend", "Options"]
