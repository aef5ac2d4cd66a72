"""Where engines run: the contract in `base`, the backends, and `get` for the deployment's backend.

Imports stay light on purpose: the launcher of subprocess engines imports this package for every start of an engine.
"""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engines.backends.base import Backend


@cache
def get() -> "Backend":
    """The deployment's backend (`ORCH_ENGINE_BACKEND`), made once per process. Raises ImproperlyConfigured."""
    from django.core.exceptions import ImproperlyConfigured

    from common.settings import settings

    env = settings.ENV
    match env.engine_backend:
        case "memory":
            from engines.backends.memory import MemoryBackend

            socket = settings.ENGINES_ROOT.with_name("run") / "memory.sock"  # beside the other sockets of ORCH_HOME
            return MemoryBackend(socket, env.backend_timeout_s, bind=env.engine_bind)
        case "subprocess":
            from engines.backends.process.backend import SubprocessBackend

            catalog = Path(env.catalog_mount_path) if env.catalog_mount_path else None
            return SubprocessBackend(settings.ENGINES_ROOT, env.backend_timeout_s, bind=env.engine_bind, catalog=catalog)
        case "docker":
            from engines.backends.docker import DockerBackend, Options

            return DockerBackend(Options.read(env))
        case name:
            raise ImproperlyConfigured(f"ORCH_ENGINE_BACKEND={name}: no backend has this name")
