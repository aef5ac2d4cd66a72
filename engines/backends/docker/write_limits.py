"""How much an engine may write to the host's disk per second, where the daemon's cgroups are version 2.

With version 1 the kernel does not count a write that is buffered, which nearly every write is: there is no limit. The limit is
for the block device with the daemon's data, where also volumes are. The guard finds the device, unless the settings name it:
Docker puts `/etc/resolv.conf` of a container on that device.
"""

from typing import Any

from engines.backends.docker.daemon import Daemon
from engines.backends.docker.guard import Guard
from engines.backends.docker.options import Options

VERSION = "2"
WRITES_PER_MB = 20  # writes of 50 kB on average; more would be a flood of small writes, each of which costs the disk a seek


def find(daemon: Daemon, guard: Guard, options: Options) -> dict[str, Any] | None:
    """A part of a container's HostConfig, empty without a limit; None as long as no guard runs. Raises BackendUnavailable."""
    if not options.write_mb_s or daemon.ask(lambda api: api.info()).get("CgroupVersion") != VERSION:
        return {}
    if not options.disk_device and not guard.is_up():
        return None
    return config(options.disk_device or guard.disk(), options.write_mb_s)


def config(device: str, write_mb_s: int) -> dict[str, Any]:
    """The limits for one device, as Docker takes them; empty without a device, for instance on a file system over several."""
    if not device:
        return {}
    return {
        "BlkioDeviceWriteBps": [{"Path": device, "Rate": write_mb_s * 1024 * 1024}],
        "BlkioDeviceWriteIOps": [{"Path": device, "Rate": write_mb_s * WRITES_PER_MB}],
    }
