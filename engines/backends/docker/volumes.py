"""What an engine may write to: its volume, with its limits, and a tmpfs for each volume that its image declares.

Docker makes an anonymous volume for every `VOLUME` of an image, without any limit, outside the engine's own volume. A tmpfs takes
its place, unless the engine's volume, the catalog or /tmp is there anyway. All of an image's volumes together have as much space
as /tmp. A tmpfs counts as memory of the engine.
"""

import posixpath
from collections.abc import Iterable, Mapping
from typing import Any
from uuid import UUID

import structlog
from docker.errors import APIError

from engines.backends.base import MB, ImageUnfit, Limits
from engines.backends.docker.daemon import Daemon, NotFound, is_conflict
from engines.backends.docker.options import Options

log = structlog.get_logger(__name__)
DEPLOYMENT = "roundhouse.deployment"  # label
DATA, CATALOG, TMP = "/data", "/catalog", "/tmp"  # noqa: S108
MOST = 16  # volumes that an image may declare


def name(engine_id: UUID) -> str:
    """The name of an engine's volume, shared by all incarnations."""
    return f"engine-data-{engine_id}"


def disk_mb(limits: Limits, options: Options) -> int:
    """The disk space that the engine's volume may take."""
    return limits.disk_mb or options.disk_mb


def mounts(engine_id: UUID, marks: Mapping[str, str], limits: Limits, options: Options) -> list[dict[str, Any]]:
    """The engine's volume and the catalog; a new volume copies owner and mode of the image's /data, to let the engine write.

    With `disk_quota`, the daemon gives a new volume a quota. A daemon whose disk has no quotas refuses the whole container.
    """
    made: dict[str, Any] = {"Labels": dict(marks)}
    if options.disk_quota:
        made["DriverConfig"] = {"Name": "local", "Options": {"size": f"{disk_mb(limits, options)}m"}}
    volume = {"Type": "volume", "Source": name(engine_id), "Target": DATA, "VolumeOptions": made}
    if not options.catalog:
        return [volume]
    return [volume, {"Type": "bind", "Source": options.catalog, "Target": CATALOG, "ReadOnly": True}]


def file_size(limits: Limits, options: Options) -> dict[str, Any]:
    """The ulimit that keeps every process of the engine from writing a file larger than its volume may be."""
    most = disk_mb(limits, options) * MB
    return {"Name": "fsize", "Soft": most, "Hard": most}


def tmpfs(declared: Iterable[str], options: Options) -> dict[str, str]:
    """Mount options by path: of /tmp, and of the volumes that the image declares. Raises ImageUnfit."""
    paths = {_path(each) for each in declared} - {DATA, TMP} - ({CATALOG} if options.catalog else set())
    if len(paths) > min(MOST, options.tmp_mb):
        raise ImageUnfit(f"the image declares {len(paths)} volumes; at most {min(MOST, options.tmp_mb)} are allowed")
    user, group = options.user.split(":")
    common = "rw,nosuid,nodev,noexec"
    theirs = f"{common},mode=0700,uid={user},gid={group},size={options.tmp_mb // max(1, len(paths))}m"
    return {TMP: f"{common},mode=1777,size={options.tmp_mb}m", **dict.fromkeys(sorted(paths), theirs)}


def _path(declared: str) -> str:
    """The path of a declared volume as the daemon mounts it. Raises ImageUnfit."""
    path = posixpath.normpath(declared)
    if not path.startswith("/") or path.strip("/") == "":
        raise ImageUnfit(f"the image declares a volume at {declared!r}; only absolute paths below / are allowed")
    return path if not path.startswith("//") else path[1:]


def check(container: Mapping[str, Any], engine_id: UUID) -> None:
    """Raise ImageUnfit if the daemon's description of a new container has any volume but the engine's own."""
    others = [
        mount["Destination"] for mount in container["Mounts"] if mount["Type"] == "volume" and mount["Name"] != name(engine_id)
    ]
    if others:
        raise ImageUnfit(f"the daemon made volumes of its own at {', '.join(others)}")


def remove(daemon: Daemon, engine_id: UUID, deployment: str) -> bool:
    """Remove the engine's volume; False if a container has it. Raises BackendUnavailable.

    A volume with the label of another deployment stays: its name has only the engine's id, which the copy of a database has, too.
    """
    try:
        labels = daemon.ask(lambda api: api.inspect_volume(name(engine_id)))["Labels"] or {}
        if labels.get(DEPLOYMENT, deployment) != deployment:
            log.warning("volume_of_another_deployment", engine_id=str(engine_id), deployment=labels[DEPLOYMENT])
            return True
        daemon.ask(lambda api: api.remove_volume(name(engine_id)))
    except NotFound:
        return True
    except APIError as refused:
        if not is_conflict(refused):
            raise
        return False
    return True
