"""A Docker daemon for tests to kill, freeze and fill: in network and mount namespaces of its own, its data in memory."""

import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import docker

from engines.backends.docker import Options
from tests import kinds
from tests.engines.backends.runtimes import IMAGE
from tests.waiting import until

SIZE_MB = 700


@kinds.needs("docker")
class Dockerd:
    """`url` names it while it runs; `client` is the tests' own way in. `flags` are further ones of its command line."""

    def __init__(self, *flags: str) -> None:
        kinds.require("docker")
        self.flags = flags
        self.folder = Path(tempfile.mkdtemp(prefix="rhd-", dir="/tmp"))  # short: sockets lie below it
        self.url = f"unix://{self.folder}/docker.sock"
        self.client = docker.DockerClient(base_url=self.url, version="1.41", timeout=30)
        (self.folder / "data").mkdir()
        command = f"mount -t tmpfs -o size={SIZE_MB}m data {self.folder}/data && ip link set lo up && exec sleep infinity"
        self._namespaces = subprocess.Popen(["unshare", "--net", "--mount", "sh", "-c", command])
        until(lambda: Path(f"/proc/{self._namespaces.pid}/comm").read_text() == "sleep\n")
        self.start()

    @property
    def data(self) -> Path:
        """Its data folder, as seen from here."""
        return Path(f"/proc/{self._namespaces.pid}/root{self.folder}/data")

    def start(self) -> None:
        """Start it and wait until it answers."""
        for stale in ("pid", "exec/containerd/containerd.pid"):  # of one that was killed, and may not be buried yet
            (self.folder / stale).unlink(missing_ok=True)
        command = ["nsenter", "-t", str(self._namespaces.pid), "--net", "--mount", "dockerd", "-H", self.url]
        for name, value in (("data-root", "data"), ("exec-root", "exec"), ("pidfile", "pid")):
            command += [f"--{name}", f"{self.folder}/{value}"]
        command += self.flags
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        until(self.answers, 30, "dockerd answers")

    def answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except (docker.errors.DockerException, OSError):
            return False

    def kill(self) -> None:
        """As a crash would: its containers live on until it is back."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def set(self, switch: str, value: str) -> None:
        """Set a switch of its kernel's networking; Docker has to have made a bridge before."""
        self.run("sysctl", "-q", f"{switch}={value}")

    def run(self, *command: str) -> None:
        """Run a command in its network."""
        subprocess.run(["nsenter", "-t", str(self._namespaces.pid), "--net", *command], check=True)

    def ask(self, *command: str) -> str:
        """What a command in its network prints."""
        found = subprocess.run(["nsenter", "-t", str(self.pid), "--net", *command], check=True, capture_output=True, text=True)
        return found.stdout.strip()

    @property
    def pid(self) -> int:
        """A process in its network."""
        return self._namespaces.pid

    def load(self, client: docker.DockerClient) -> None:
        """Give it the images of another daemon."""
        names = [IMAGE, Options.guard_image]
        with (self.folder / "images.tar").open("w+b") as archive:
            for chunk in _save(client, names):
                archive.write(chunk)
            archive.seek(0)
            self.client.images.load(archive)
        (self.folder / "images.tar").unlink()

    def close(self) -> None:
        """End it and all its containers."""
        self.process.send_signal(signal.SIGCONT)
        if self.process.poll() is not None:
            self.start()
        for container in self.client.containers.list(all=True, ignore_removed=True):
            container.remove(force=True, v=True)
        self.process.terminate()
        self.process.wait(30)
        self._namespaces.kill()
        self._namespaces.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def _save(client: docker.DockerClient, names: list[str]):
    """Chunks of one archive with several images, so that a layer they share is in it once."""
    response = client.api._get(client.api._url("/images/get"), params={"names": names}, stream=True)
    return client.api._stream_raw_result(response, 1024 * 1024, False)


def is_root() -> bool:
    return os.geteuid() == 0
