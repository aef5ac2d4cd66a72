"""The seccomp profile of every engine: which system calls the kernel carries out, the same on every version of Docker.

The profile is `seccomp.json`, in the form in which Docker takes profiles. The profile is made from the default profile of Docker
20.10.24 (moby/profiles/seccomp/default.json, Copyright 2012-2018 Docker, Inc., Apache License 2.0), and was changed:
docs/decisions/0912-a-seccomp-profile-of-our-own.md lists the changes, with the reasons.
"""

import json
from pathlib import Path


def _read() -> str:
    """The profile without spaces and comments, because Docker stores a copy with every container."""
    profile = json.loads(Path(__file__).with_suffix(".json").read_text())
    rules = [{key: value for key, value in rule.items() if key != "comment"} for rule in profile["syscalls"]]
    return json.dumps({**profile, "syscalls": rules}, separators=(",", ":"))


OPTION = f"seccomp={_read()}"
"""The entry of a container's `SecurityOpt`."""
