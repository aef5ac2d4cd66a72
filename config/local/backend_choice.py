"""Where the engines of a local run live: in Docker where a daemon answers and has the engine's image, else as subprocesses.

The choice is kept in the home (`backend`), because engines made by one backend are not there for the other. It is made anew while
the home has no engine: none under `engines`, none on the daemon, and where no daemon answers, none when the last run ended.
ORCH_ENGINE_BACKEND decides when it is set, and is kept for a later run without it.
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
    """The backend for this start, and why it is that one, in a few words. Keeps the choice."""
    if asked := os.environ.get("ORCH_ENGINE_BACKEND"):
        _keep(home, asked)
        return asked, "ORCH_ENGINE_BACKEND is set"
    if before := _backend_of_engines(home):
        return before, "as before: this home's engines are there"
    missing = _missing_for_docker()
    chosen, why = ("subprocess", missing) if missing else ("docker", "a daemon answers and has the engine image")
    _keep(home, chosen)
    return chosen, why


def forget(home: Path) -> None:
    """Keep no choice: no engine needs it."""
    (home / "backend").unlink(missing_ok=True)


def _keep(home: Path, backend: str) -> None:
    """Keep it, unless no engine could be there at the next start."""
    if backend in BACKENDS:
        (home / "backend").write_text(backend + "\n")


def _backend_of_engines(home: Path) -> str:
    """The kept choice, as long as there may be an engine that it was made for; else an empty string."""
    match kept(home):
        case "docker" if _may_have_engines(home):
            return "docker"
        case "subprocess" if any((home / "engines").iterdir()):
            return "subprocess"
    return ""


def _may_have_engines(home: Path) -> bool:
    """Whether the daemon has a volume of an engine of ours; also when it does not answer."""
    from docker.errors import DockerException

    from engines.backends.docker.containers import DEPLOYMENT

    label = f"{DEPLOYMENT}={os.environ.get('ORCH_DEPLOYMENT') or deployment(home)}"
    try:
        return bool(_daemon().volumes.list(filters={"label": label}))
    except (DockerException, OSError):
        return True


def _setting(name: str) -> str:
    """Value of `ORCH_<NAME>`; whether the whole environment is right is told by whatever starts next."""
    from common.env import Env

    return os.environ.get(f"ORCH_{name.upper()}") or str(Env.model_fields[name].default)


def _missing_for_docker() -> str:
    """What is missing for the Docker backend, or an empty string."""
    from docker.errors import DockerException, ImageNotFound

    try:
        client = _daemon()
        client.images.get(_setting("engine_image"))
        client.images.get(_setting("guard_image"))
    except ImageNotFound:
        return "the daemon has no engine image; `make engine-image` builds it"
    except (DockerException, OSError):
        return "no Docker daemon answers"
    return ""


def _daemon() -> "docker.DockerClient":
    import docker

    url = os.environ.get("ORCH_DOCKER_URL") or os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
    return docker.DockerClient(base_url=url, timeout=3)
