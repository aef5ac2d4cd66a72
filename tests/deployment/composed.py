"""A deployment by compose.yaml on the real daemon, under a name of its own, of which nothing is left afterwards."""

import json
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import docker
import pytest

from config.local.home import BASE_DIR
from engines.backends.docker.containers import CLIENT, PRODUCTS
from tests import kinds, servers, waiting
from tests.engines.backends import dock
from tests.engines.backends.runtimes import IMAGE

ASK = """
import json, sys, urllib.error, urllib.request
method, url, headers, body = json.load(sys.stdin)
data = None if body is None else json.dumps(body).encode()
request = urllib.request.Request(url, data, {"Content-Type": "application/json", **headers}, method=method)
try:
    answer = urllib.request.urlopen(request, timeout=100)
except urllib.error.HTTPError as refused:
    answer = refused
print(json.dumps([answer.status, answer.read().decode()]))
"""


@kinds.needs("docker", "deployment")
class Composed:
    """`name` is the project's and the deployment's; `env` what is in its .env file, which names the edition if one is given."""

    def __init__(self, client: docker.DockerClient, folder: Path, command: list[str], edition: str = "") -> None:
        kinds.require("deployment")
        self.client = client
        self.name = f"test-{secrets.token_hex(3)}"
        self._env_file = folder / "env"
        made = subprocess.run([BASE_DIR / "scripts" / "compose-env"], capture_output=True, text=True, check=True).stdout
        made = made.replace("COMPOSE_PROJECT_NAME=roundhouse", f"COMPOSE_PROJECT_NAME={self.name}")
        self._env_file.write_text(made.replace("COMPOSE_PROFILES=small", f"COMPOSE_PROFILES={edition}") if edition else made)
        self.env = dict(line.split("=", 1) for line in self._env_file.read_text().splitlines())
        settings = folder / "settings.env"
        settings.write_text("ORCH_ALLOWED_HOSTS=web,127.0.0.1\nORCH_HEALTH_CHECK_INTERVAL_S=1\nORCH_STOP_GRACE_S=2\n")
        self.url = f"http://127.0.0.1:{servers.free_port()}"
        self._command = [*command, "--env-file", str(self._env_file), "--file", str(BASE_DIR / "compose.yaml")]
        self._environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("ORCH_", "COMPOSE_", "ROUNDHOUSE_"))},
            "ROUNDHOUSE_SETTINGS": str(settings),
            "ROUNDHOUSE_PUBLISH": self.url.removeprefix("http://"),
        }

    def services(self) -> set[str]:
        """Those that it has containers of."""
        label = f"com.docker.compose.project={self.name}"
        found = self.client.containers.list(all=True, filters={"label": label})
        return {container.labels["com.docker.compose.service"] for container in found}

    def compose(self, *arguments: str) -> str:
        """What the command says on stdout. Fails the test when it fails."""
        done = subprocess.run([*self._command, *arguments], capture_output=True, text=True, env=self._environ, timeout=180)
        assert done.returncode == 0, done.stderr[-3000:] + self.logs()
        return done.stdout

    def logs(self) -> str:
        return "\n".join(
            f"== {container.name}: {container.status}\n{container.logs(tail=15).decode()[-3000:]}"
            for container in self.client.containers.list(all=True, filters={"label": f"com.docker.compose.project={self.name}"})
        )

    def up(self) -> None:
        """Bring it up, and wait until Docker finds the web server healthy."""
        self.compose("up", "--detach")
        waiting.until(lambda: self.is_healthy("web"), 60, "the web server is healthy")

    def is_healthy(self, service: str) -> bool:
        return self.container(service).attrs["State"]["Health"]["Status"] == "healthy"

    def container(self, service: str) -> Any:
        labels = [f"com.docker.compose.project={self.name}", f"com.docker.compose.service={service}"]
        (found,) = self.client.containers.list(all=True, filters={"label": labels})
        return found

    def networks_of(self, service: str) -> set[str]:
        return set(self.container(service).attrs["NetworkSettings"]["Networks"])

    def down(self) -> None:
        """Take everything away, engines last: as long as somebody works on them they are brought back."""
        self.compose("down", "--volumes", "--timeout", "3")
        dock.sweep(self.client, self.name)

    @contextmanager
    def app_of(self, product: str) -> Iterator["App"]:
        """A product's own container: it asks the API at http://web:8000, and calls its engines."""
        labels = {CLIENT: self.name, PRODUCTS: product}
        container = self.client.containers.run(
            IMAGE, ["sleep", "600"], network=f"{self.name}_api", labels=labels, environment={"ASK": ASK}, detach=True
        )
        try:
            yield App(container)
        finally:
            container.remove(force=True)


class App:
    """HTTP as seen from inside a container."""

    def __init__(self, container: Any) -> None:
        self.container = container

    def ask(self, method: str, url: str, body: Any = None, **headers: str) -> tuple[int, str]:
        """Status and body of the answer."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        question = json.dumps([method, url, named, body])
        code = f"import io, os, sys; sys.stdin = io.StringIO({question!r}); exec(os.environ['ASK'])"
        said = dock.run_inside(self.container, code)
        try:
            status, text = json.loads(said)
        except ValueError:
            pytest.fail(said)
        return status, text

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        """The parsed answer of the API, which has to be 200."""
        status, text = self.ask(method, f"http://web:8000{path}", body, **headers)
        assert status == 200, text
        return json.loads(text)


def command() -> list[str]:
    """Compose as it is installed here. Skips the test where it is not, or fails it if Docker is required."""
    for found in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(found[0]) and subprocess.run([*found, "version"], capture_output=True).returncode == 0:
            return found
    say = pytest.fail if os.environ.get("ORCH_REQUIRE_DOCKER") == "1" else pytest.skip
    return say("neither `docker compose` nor `docker-compose` is installed")


def refresh_images(client: docker.DockerClient) -> None:
    """Build this code's images; where `make image` was never called, the tests are skipped, or fail if Docker is required."""
    if os.environ.get("ORCH_REQUIRE_DOCKER") != "1" and not client.images.list("roundhouse"):
        pytest.skip("no images of `make image`")
    built = subprocess.run([BASE_DIR / "scripts" / "image"], capture_output=True, text=True, timeout=600)
    assert built.returncode == 0, built.stderr
