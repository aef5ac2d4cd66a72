"""Where the engines of a local run live: in Docker where a daemon answers and has the engine's image, else as subprocesses.

The choice is kept in the home (`backend`), because engines made by one backend are not there for the other; it is made anew
while the home has no subprocess engine. ORCH_ENGINE_BACKEND decides when it is set.
"""

import os
from pathlib import Path

BACKENDS = ("docker", "subprocess")


def kept(home: Path) -> str:
    """The backend chosen before, or an empty string."""
    try:
        found = (home / "backend").read_text().strip()
    except OSError:
        return ""
    return found if found in BACKENDS else ""


def choose(home: Path) -> tuple[str, str]:
    """The backend for this start, and why it is that one, in a few words. Keeps the choice."""
    if asked := os.environ.get("ORCH_ENGINE_BACKEND"):
        return asked, "ORCH_ENGINE_BACKEND is set"
    if kept(home) == "docker":
        return "docker", "as before: this home's engines are there"
    if kept(home) == "subprocess" and any((home / "engines").iterdir()):
        return "subprocess", "as before: this home's engines are there"
    missing = _missing_for_docker()
    chosen, why = ("subprocess", missing) if missing else ("docker", "a daemon answers and has the engine image")
    (home / "backend").write_text(chosen + "\n")
    return chosen, why


def _setting(name: str) -> str:
    """Value of `ORCH_<NAME>`; whether the whole environment is right is told by whatever starts next."""
    from config.env import Env

    return os.environ.get(f"ORCH_{name.upper()}") or str(Env.model_fields[name].default)


def _missing_for_docker() -> str:
    """What is missing for the Docker backend, or an empty string."""
    import docker
    from docker.errors import DockerException, ImageNotFound

    url = os.environ.get("ORCH_DOCKER_URL") or os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
    try:
        client = docker.DockerClient(base_url=url, timeout=3)
        client.images.get(_setting("engine_image"))
        client.images.get(_setting("guard_image"))
    except ImageNotFound:
        return "the daemon has no engine image; `make engine-image` builds it"
    except (DockerException, OSError):
        return "no Docker daemon answers"
    return ""
