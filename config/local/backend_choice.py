"""Chooses the backend of a local run: Docker, if a daemon answers and has the engine's image, else subprocesses.

The home keeps the choice in the file `backend`, because a backend cannot find the engines of the other backend. A home without
engines chooses anew: no engine under `engines`, no engine on the daemon, or, if no daemon answers, no engine at the end of the
last run. ORCH_ENGINE_BACKEND overrides the choice, and is kept for later runs without the variable.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from config.local.home import deployment

if TYPE_CHECKING:
    import docker

BACKENDS = ("docker", "subprocess")


def kept(home: Path) -> str:
    """The backend of the last run, or an empty string."""
    try:
        found = (home / "backend").read_text().strip()
    except OSError:
        return ""
    return found if found in BACKENDS else ""


def choose(home: Path) -> tuple[str, str]:
    """Return the backend for the start, and the reason in a few words; keep the choice."""
    if asked := os.environ.get("ORCH_ENGINE_BACKEND"):
        _keep(home, asked)
        return asked, "ORCH_ENGINE_BACKEND is set"
    if before := _backend_of_engines(home):
        return before, "kept from the last run: this home has engines"
    missing = _missing_for_docker()
    chosen, why = ("subprocess", missing) if missing else ("docker", "a Docker daemon answers and has the engine image")
    _keep(home, chosen)
    return chosen, why


def forget(home: Path) -> None:
    """Delete the kept choice of a home without engines."""
    (home / "backend").unlink(missing_ok=True)


def _keep(home: Path, backend: str) -> None:
    """Keep the choice, unless the backend (`memory`) loses all engines when the run ends."""
    if backend in BACKENDS:
        (home / "backend").write_text(backend + "\n")


def _backend_of_engines(home: Path) -> str:
    """The kept choice while the kept backend may have an engine of the home; else an empty string."""
    match kept(home):
        case "docker" if _may_have_engines(home):
            return "docker"
        case "subprocess" if any((home / "engines").iterdir()):
            return "subprocess"
    return ""


def _may_have_engines(home: Path) -> bool:
    """Whether the daemon has a volume of this home's engines; also true when the daemon does not answer."""
    from docker.errors import DockerException

    from engines.backends.docker.containers import DEPLOYMENT

    label = f"{DEPLOYMENT}={os.environ.get('ORCH_DEPLOYMENT') or deployment(home)}"
    try:
        return bool(_daemon().volumes.list(filters={"label": label}))
    except (DockerException, OSError):
        return True


def _setting(name: str) -> str:
    """Value of `ORCH_<NAME>`, unchecked: the next program to start checks the whole environment."""
    from common.env import Env

    return os.environ.get(f"ORCH_{name.upper()}") or str(Env.model_fields[name].default)


def _missing_for_docker() -> str:
    """The reason against the Docker backend, or an empty string."""
    from docker.errors import DockerException, ImageNotFound

    try:
        client = _daemon()
        client.images.get(_setting("engine_image"))
        client.images.get(_setting("guard_image"))
    except ImageNotFound:
        return "the Docker daemon has no engine image; build the image with `make engine-image`"
    except (DockerException, OSError):
        return "no Docker daemon answers"
    return ""


def _daemon() -> "docker.DockerClient":
    import docker

    url = os.environ.get("ORCH_DOCKER_URL") or os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
    return docker.DockerClient(base_url=url, timeout=3)
