"""What runs engines in a reliability test, seen from outside: which engines have a process, and what lies about."""

import json
import os
import secrets
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

from django.conf import settings

from engines import backends
from engines.backends.docker.containers import DEPLOYMENT
from engines.backends.docker.volumes import name as volume_name
from tests import servers, waiting
from tests.engines.backends import dock


def _engine_processes() -> list[Path]:
    return [folder for folder in Path("/proc").glob("[0-9]*") if b"engines.demo" in _read(folder / "cmdline")]


def _read(file: Path) -> bytes:
    """The file of a process, empty once it has ended."""
    try:
        return file.read_bytes()
    except OSError:
        return b""


def _engine_of(environment: dict[str, str]) -> UUID:
    return UUID(Path(environment["SQLITE_DB_PATH"]).parent.parent.name)


class Subprocesses:
    """Engines as processes of this machine."""

    name = "subprocess"
    environment: dict[str, str] = {}

    def _environments(self) -> list[dict[str, str]]:
        """Of every engine process of this test run, as the operating system has them; one entry per process."""
        root = str(servers.HOME / "engines").encode()
        found = [_read(folder / "environ") for folder in _engine_processes()]
        return [dict(part.split("=", 1) for part in each.decode().split("\0") if "=" in part) for each in found if root in each]

    def running(self) -> list[UUID]:
        """The engine of every engine process; one entry per process."""
        return [_engine_of(environment) for environment in self._environments()]

    def published(self) -> set[tuple[UUID, int]]:
        """Every engine that runs, with the port that its process was told to listen on."""
        return {(_engine_of(environment), int(environment["PORT"])) for environment in self._environments()}

    def volumes(self) -> set[UUID]:
        """Engines that have data on disk."""
        return {UUID(folder.name) for folder in (servers.HOME / "engines").iterdir() if (folder / "data").exists()}

    def networks(self) -> set[str]:
        """A process has none of its own."""
        return set()

    def told(self) -> dict[str, str]:
        """What engines' processes were started with, and all of their files."""
        environs = [_read(folder / "environ") for folder in _engine_processes()]
        files = [path.read_bytes() for path in (servers.HOME / "engines").rglob("*") if path.is_file()]
        return {
            "environments of engines": "".join(environ.decode() for environ in environs if str(servers.HOME).encode() in environ),
            "files of engines": "".join(text.decode(errors="replace") for text in files),
        }

    def close(self) -> None:
        """Nothing of it is left: `db` removes the engines."""


class Docker:
    """Engines as containers of the daemon, under a deployment of their own."""

    name = "docker"

    def __init__(self) -> None:
        self.client = dock.connect()
        self.deployment = f"test-{secrets.token_hex(3)}"
        self.environment = {
            "ORCH_ENGINE_BACKEND": "docker",
            "ORCH_DEPLOYMENT": self.deployment,
            "ORCH_ENGINE_NETWORK": self.deployment,
            "ORCH_ENGINE_MEMORY_MB": "128",
        }

    def _mine(self) -> dict[str, str]:
        return {"label": f"{DEPLOYMENT}={self.deployment}"}

    def running(self) -> list[UUID]:
        """The engine of every running container of the deployment; one entry per container."""
        found = self.client.containers.list(filters=self._engines(), ignore_removed=True)
        return [UUID(container.labels["roundhouse.engine"]) for container in found]

    def _engines(self) -> dict[str, list[str]]:
        return {"label": [f"{DEPLOYMENT}={self.deployment}", "roundhouse.engine"]}

    def remove_containers(self) -> None:
        """What somebody does who types `docker rm --force` of every engine."""
        found = self.client.containers.list(all=True, filters=self._engines(), ignore_removed=True)
        with ThreadPoolExecutor(len(found)) as pool:
            list(pool.map(lambda container: container.remove(force=True), found))

    def volumes(self) -> set[UUID]:
        """Engines that have a volume."""
        prefix = volume_name(UUID(int=0)).removesuffix(str(UUID(int=0)))
        return {UUID(found.name.removeprefix(prefix)) for found in self.client.volumes.list(filters=self._mine())}

    def networks(self) -> set[str]:
        """Names of the deployment's networks."""
        return {network.name for network in self.client.networks.list(filters=self._mine())}

    def published(self) -> set[tuple[UUID, int]]:
        """Every engine with a port of the host, as the daemon has bound it."""
        return {
            (UUID(found.labels["roundhouse.engine"]), int(binding["HostPort"]))
            for found in self.client.containers.list(filters=self._engines(), ignore_removed=True)
            for binding in found.ports.get("8000/tcp") or []
        }

    def told(self) -> dict[str, str]:
        """`docker inspect` of all that the deployment has on the daemon, and the logs and data of its engines."""
        api = self.client.api
        containers = api.containers(all=True, filters=self._mine())
        engines = self.client.containers.list(all=True, filters=self._engines(), ignore_removed=True)
        data = [b"".join(engine.get_archive("/data")[0]) for engine in engines]
        inspected = [
            [api.inspect_container(found["Id"]) for found in containers],
            [api.inspect_image(image) for image in {found["ImageID"] for found in containers}],
            [api.inspect_volume(found["Name"]) for found in api.volumes(filters=self._mine())["Volumes"]],
            [api.inspect_network(found["Id"]) for found in api.networks(filters=self._mine())],
        ]
        return {
            "docker inspect": json.dumps(inspected),
            "files of engines": b"".join([*data, *(engine.logs() for engine in engines)]).decode(errors="replace"),
        }

    def close(self) -> None:
        """Remove everything of the deployment."""
        dock.sweep(self.client, self.deployment)


@contextmanager
def used(runtime: Subprocesses | Docker) -> Iterator[None]:
    """This process, too, asks the runtime that the stack uses."""
    usual = settings.ENV
    own = {name.removeprefix("ORCH_").lower(): value for name, value in runtime.environment.items()}
    settings.ENV = type(usual).model_validate({**usual.model_dump(), **own})
    backends.get.cache_clear()
    try:
        yield
    finally:
        settings.ENV = usual
        backends.get.cache_clear()
        runtime.close()


def restart_daemon() -> None:
    """SIGKILL dockerd, and start it again two seconds later as it was."""
    pid = int(Path("/var/run/docker.pid").read_text())
    command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1]
    os.kill(pid, signal.SIGKILL)
    since = waiting.now()
    waiting.until(lambda: waiting.passed(since, 2), 5)
    Path("/var/run/docker.pid").unlink(missing_ok=True)
    log = (servers.HOME / "log" / "dockerd.log").open("ab")
    subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    waiting.until(daemon_answers, 60, "dockerd answers")


def daemon_answers() -> bool:
    try:
        return bool(dock.docker.DockerClient(base_url=dock.URL, timeout=5).ping())
    except dock.docker.errors.DockerException:
        return False
