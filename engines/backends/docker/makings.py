"""What a container is made of by the settings and by its incarnation: noted in a label, and compared before the container starts.

The label has a fingerprint per part (`engines.backends.parts`), and what the policy asked for when the container was made: a
later policy alone makes no difference. A container's networks and image are taken from the daemon's list, which also shows
what was changed by hand. Not compared: the port and the limit on files, which `create` moves by itself; the options of
resolv.conf and the device with the daemon's data, which the host decides. docs/decisions/1121 gives the reasons.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from engines.backends import parts
from engines.backends.base import Limits, Spec
from engines.backends.docker import seccomp
from engines.backends.docker.options import Options

# Short of memory, the host ends engines before the daemon, PostgreSQL and our processes, which have 0 or less.
OOM_SCORE = 500
CPU_SHARES = 256  # per CPU of an engine's ceiling; a process of ours in a container has 1,024
# Open files of a process: far more than an agent needs, far less than the host's own limit. There is no limit `nproc`: the
# kernel counts it per user over all containers, so one engine could use up what all engines have. PidsLimit is per container.
OPEN_FILES = 16_384
ASKED = "asked"  # the entry with what the policy asked for


def note(spec: Spec, options: Options) -> str:
    """The label of a container that is made of the spec."""
    asked = {"cpus": spec.limits.cpus, "pids": spec.limits.pids, "runtime": spec.runtime}
    return json.dumps({**_wanted(spec, asked, options), ASKED: json.dumps(asked)}, separators=(",", ":"))


def noted(label: str, networks: Iterable[str], image: str) -> dict[str, str]:
    """What a listed container was made of: its label, and its networks and image as they are. Empty without a readable label.

    The networks of one product count as one: a container may be moved from a full network to the next.
    """
    try:
        found = json.loads(label)
    except ValueError:
        return {}
    if not isinstance(found, dict):
        return {}
    return {**found, "network": ",".join(sorted(re.sub(r"\.\d+$", "", each) for each in networks)), "image": image}


def differing(made_of: Mapping[str, str], spec: Spec, options: Options) -> Sequence[str]:
    """The parts that differ; see `Backend.differing`."""
    if not made_of:
        return [parts.UNKNOWN]
    wanted = _wanted(spec, json.loads(made_of.get(ASKED, "{}")), options)
    image = {"image": spec.digest} if spec.digest else {}
    return parts.differing(made_of, {**wanted, "network": f"{options.network}-{spec.product}", **image})


def _wanted(spec: Spec, asked: Mapping[str, Any], options: Options) -> dict[str, str]:
    limits = Limits(spec.limits.memory_mb, asked.get("cpus"), asked.get("pids"))
    return {
        **parts.of_environment(environment(spec)),
        **_by_settings(options),
        "limits": parts.fingerprint([ceilings(limits, options), OPEN_FILES, options.write_mb_s]),
        "runtime": runtime(asked.get("runtime", ""), options),
    }


@lru_cache(maxsize=4)  # the sweep compares every engine
def _by_settings(options: Options) -> Mapping[str, str]:
    """The parts that are the same for every container of the deployment."""
    return {
        "address": parts.fingerprint([options.reach, options.bind if options.reach == "port" else ""]),
        "user": options.user,
        "mounts": parts.fingerprint([options.catalog, options.tmp_mb]),
        "profile": parts.fingerprint(hardening()),
    }


def environment(spec: Spec) -> dict[str, str]:
    """All variables of the container, beside those of its image."""
    return {**spec.env, "SQLITE_DB_PATH": "/data/brain.sqlite", "CATALOG_DIR": "/catalog"}


def runtime(asked: str, options: Options) -> str:
    """The container runtime, by the daemon's name for it."""
    return asked or options.runtime


def hardening() -> dict[str, Any]:
    """Restrictions for every engine; AppArmor is not named, which selects the daemon's default profile."""
    return {
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges", seccomp.OPTION],
        "ReadonlyRootfs": True,
        "IpcMode": "private",
        "CgroupnsMode": "private",  # shows an engine no names of the host's groups
        "OomScoreAdj": OOM_SCORE,
        "Init": True,  # reaps orphaned child processes, which would count towards PidsLimit
        "RestartPolicy": {"Name": "no"},  # Roundhouse restarts engines itself, to record every restart in a row
    }


def ceilings(limits: Limits, options: Options) -> dict[str, Any]:
    """A product's limits only lower the deployment's; `MemorySwap` counts memory plus swap, thus equal values allow no swap."""
    memory = min(limits.memory_mb or options.memory_mb, options.memory_mb) * 1024 * 1024
    cpus = min(limits.cpus or options.cpus, options.cpus)
    return {
        "Memory": memory,
        "MemorySwap": memory,
        "NanoCpus": int(cpus * 1e9),
        "CpuShares": max(2, int(cpus * CPU_SHARES)),  # 2 is the least that the kernel takes
        "PidsLimit": min(limits.pids or options.pids, options.pids),
        "LogConfig": {"Type": "json-file", "Config": {"max-size": f"{options.log_mb}m", "max-file": "2"}},
    }
