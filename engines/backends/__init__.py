"""Where engines run: the contract in `base`, one module per backend, and the one this deployment uses.

Kept light on purpose: the launcher of subprocess engines imports this package each time it starts one.
"""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engines.backends.base import Backend


@cache
def get() -> "Backend":
    """The deployment's backend (`ORCH_ENGINE_BACKEND`), one per process. Raises ImproperlyConfigured."""
    from django.core.exceptions import ImproperlyConfigured

    from common.settings import settings

    env = settings.ENV
    match env.engine_backend:
        case "memory":
            from engines.backends.memory import MemoryBackend

            socket = settings.ENGINES_ROOT.with_name("run") / "memory.sock"  # beside the home's other sockets
            return MemoryBackend(socket, env.backend_timeout_s, bind=env.engine_bind)
        case "subprocess":
            from engines.backends.process.backend import SubprocessBackend

            catalog = Path(env.catalog_mount_path) if env.catalog_mount_path else None
            return SubprocessBackend(settings.ENGINES_ROOT, env.backend_timeout_s, bind=env.engine_bind, catalog=catalog)
        case "docker":
            from engines.backends.docker import DockerBackend, Options

            return DockerBackend(Options.read(env))
        case name:
            raise ImproperlyConfigured(f"ORCH_ENGINE_BACKEND={name}: there is no such backend")
