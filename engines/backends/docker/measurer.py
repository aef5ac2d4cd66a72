"""Measures engines' volumes, in a container of the guard's image that has the volumes, read-only, and nothing else.

The daemon may be on another machine, and a tool inside an engine's own container may lie. The container has no network, no
capability but to read, and little of the processor. Only one container of a deployment measures at a time, under a fixed name: a
container that a dead worker left is found by the next. docs/decisions/0914 gives the reasons.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

from docker.errors import APIError

from engines.backends import walk
from engines.backends.base import BackendError, BackendUnavailable
from engines.backends.docker import volumes
from engines.backends.docker.containers import DEPLOYMENT, ENGINE
from engines.backends.docker.daemon import Daemon, NotFound, is_conflict
from engines.backends.docker.options import Options

BEGAN = "roundhouse.measures"  # label: the budget in seconds
WALK = Path(walk.__file__).read_text()
HOST: dict[str, Any] = {  # the HostConfig of the container
    "NetworkMode": "none",
    "CapDrop": ["ALL"],
    "CapAdd": ["DAC_READ_SEARCH"],  # folders of engines are closed to others
    "SecurityOpt": ["no-new-privileges"],
    "ReadonlyRootfs": True,
    "Memory": 256 * 1024 * 1024,
    "MemorySwap": 256 * 1024 * 1024,
    "PidsLimit": 32,
    "CpuShares": 64,
    "BlkioWeight": 10,  # ignored by kernels that do not know it
    "LogConfig": {"Type": "json-file", "Config": {"max-size": "1m", "max-file": "1"}},
}


class Measurer:
    """The measuring container of one deployment on one daemon."""

    def __init__(self, daemon: Daemon, options: Options) -> None:
        self.name = f"{options.deployment}-measurer"
        self._daemon = daemon
        self._options = options

    def measure(self, engine_ids: Sequence[UUID], budget_s: float) -> tuple[dict[UUID, tuple[int, bool]], tuple[int, int, float]]:
        """The bytes of each volume, and whether they are all; and total bytes, free bytes and free share of the disk.

        The volumes exist. Raises BackendUnavailable when another container measures, or the container was ended.
        """
        self._make_way()
        try:
            self._daemon.create(self._config(engine_ids, budget_s), self.name)
        except APIError as refused:
            if is_conflict(refused):
                raise BackendUnavailable("another process measures volumes") from refused
            raise
        try:
            told = json.loads(self._run())
        except ValueError as error:
            causes = "it was killed, or its image lacks python3 or GNU find"
            raise BackendError(f"container {self.name} gave no answer: {causes}") from error
        finally:
            self.end()
        found = {engine_id: (size, is_whole) for engine_id, (size, is_whole) in zip(engine_ids, told["folders"], strict=True)}
        return found, tuple(told["disk"])

    def end(self) -> None:
        """Remove the container, if any: a volume that it has cannot be removed."""
        try:
            self._daemon.ask(lambda api: api.remove_container(self.name, force=True))
        except NotFound:
            return
        except APIError as refused:
            if not is_conflict(refused):  # being removed already
                raise

    def _make_way(self) -> None:
        """Remove a container that a dead worker left. Raises BackendUnavailable while a container still measures."""
        try:
            found = self._daemon.ask(lambda api: api.inspect_container(self.name))
        except NotFound:
            return
        if found["State"]["Running"]:
            raise BackendUnavailable("another process measures volumes")
        self.end()

    def _run(self) -> str:
        """The output of the container. Raises BackendUnavailable when the container was removed in the middle."""
        try:
            self._daemon.ask(lambda api: api.start(self.name))
            self._daemon.ask(lambda api: api.wait(self.name))
            return self._daemon.ask(lambda api: api.logs(self.name, stdout=True, stderr=False)).decode()
        except APIError as refused:
            if isinstance(refused, NotFound) or is_conflict(refused):
                raise BackendUnavailable(f"container {self.name} was removed before its answer") from refused
            raise

    def _config(self, engine_ids: Sequence[UUID], budget_s: float) -> dict[str, Any]:
        folders = {engine_id: f"/v/{engine_id}" for engine_id in engine_ids}
        # A volume with a quota says that its quota is the size of the disk: the container's own root lies on the daemon's disk.
        places = ["/"] if self._options.disk_quota else ["/", *folders.values()][:2]
        command = ["python3", "-I", "-S", "-c", WALK, str(budget_s), json.dumps(places), json.dumps([*folders.values()])]
        return {
            "Image": self._options.guard_image,
            "User": "0:0",
            "Entrypoint": command,
            "Cmd": [],
            "WorkingDir": "/",
            "Labels": {DEPLOYMENT: self._options.deployment, BEGAN: str(budget_s)},
            "HostConfig": {**HOST, "Mounts": [self._mount(each, folder) for each, folder in folders.items()]},
        }

    def _mount(self, engine_id: UUID, folder: str) -> Mapping[str, Any]:
        """A volume, read-only. If it was removed meanwhile, the daemon makes an empty one, which is found by its labels."""
        labels = {DEPLOYMENT: self._options.deployment, ENGINE: str(engine_id)}
        made = {"NoCopy": True, "Labels": labels}
        return {"Type": "volume", "Source": volumes.name(engine_id), "Target": folder, "ReadOnly": True, "VolumeOptions": made}
