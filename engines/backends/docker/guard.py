"""What keeps engines away from each other, from the host and from what lies behind it: a table of nftables rules on the host.

A small container of the guard's image, in the host's network, puts the table in force, looks at it every two seconds and puts it
back when somebody changed it. Docker starts the container again after its own restart and after a reboot. No engine is started
unless that container runs and the table is there. docs/decisions/0020 says why it is done this way.
"""

import hashlib
from contextlib import suppress
from typing import Any

from docker.errors import APIError

from engines.backends.base import BackendError, ImageMissing, NetworkUnguarded
from engines.backends.docker.containers import DEPLOYMENT
from engines.backends.docker.daemon import Daemon, NotFound, is_conflict, named
from engines.backends.docker.options import Options

TRIES = 50  # looks at a guard that is starting
RULES = "roundhouse.guard"  # label: which rules a guard's container keeps

# In words. To the host itself: nothing but answers. Through the host: not to another bridge, engines' or not; not where the
# deployment forbids; no IPv6. Engines on one bridge are kept apart by Docker (enable_icc=false) and by the first drop here.
# Chains of priority -10 come before Docker's own; what they drop stays dropped, what they accept Docker still looks at.
TABLE = """
table inet {table} {{}}
delete table inet {table}
table inet {table} {{
  chain input {{
    type filter hook input priority -10; policy accept;
    iifname "{bridges}*" ct state established,related accept
    iifname "{bridges}*" drop
  }}
  chain forward {{
    type filter hook forward priority -10; policy accept;
    iifname != "{bridges}*" accept
    ct state established,related accept
    oifname "rh-*" drop
    oifname "br-*" drop
    oifname "docker*" drop
    meta nfproto ipv6 drop
{denied}
  }}
}}
"""

KEEP = """
put() { printf '%s' "$RULES" | nft -f - || exit 1; now=$(nft list table inet "$TABLE"); }
trap 'exit 0' TERM INT
put
while :; do
  sleep 2 & wait $!
  [ "$(nft list table inet "$TABLE" 2>/dev/null)" = "$now" ] || { echo 'the rules were changed: put back'; put; }
done
"""


def bridge_prefix(deployment: str) -> str:
    """How the names of this deployment's bridges begin, in the 15 characters that an interface's name may have."""
    return f"rh-{hashlib.sha256(deployment.encode()).hexdigest()[:4]}"


class Guard:
    """The guard of one deployment on one daemon."""

    def __init__(self, daemon: Daemon, options: Options) -> None:
        self.name = f"{options.deployment}-guard"
        self.table = f"roundhouse_{bridge_prefix(options.deployment)[3:]}"
        self._daemon = daemon
        self._options = options
        self._config = self._make_config()
        self._seen = ""  # the run of the container for which the table was seen

    def check(self) -> None:
        """Return when the rules are in force, putting them there when they are not. Raises NetworkUnguarded."""
        try:
            for tries, _ in enumerate(self._daemon.rounds()):
                state = self._state()
                if state and state["Running"] and (self._seen == state["StartedAt"] or self._has_table()):
                    self._seen = state["StartedAt"]
                    return
                if tries == TRIES:
                    raise NetworkUnguarded(f"container {self.name} does not put the rules in force; its log says why")
                if not (state and state["Running"]):
                    self._start()
        except APIError as refused:
            raise NetworkUnguarded(str(named(refused, f"container {self.name}"))) from refused

    def started_at(self) -> str:
        """When the guard's container was started last; empty if there is none."""
        state = self._state()
        return state["StartedAt"] if state else ""

    def _state(self) -> dict[str, Any] | None:
        """What the daemon says of the container; None if there is none, or one with other rules, which is removed."""
        try:
            found = self._daemon.ask(lambda api: api.inspect_container(self.name))
        except NotFound:
            return None
        if found["Config"]["Labels"].get(RULES) != self._config["Labels"][RULES]:
            self.remove()
            return None
        state: dict[str, Any] = found["State"]
        return state

    def _start(self) -> None:
        """Make and start the container; another worker may be doing the same."""
        try:
            self._daemon.create(self._config, self.name)
        except APIError as refused:
            if not is_conflict(refused):
                raise _unguarded(named(refused, "the guard"), self._options.guard_image) from refused
        with suppress(NotFound):  # the other worker is not there yet, or has replaced it: look again
            self._daemon.ask(lambda api: api.start(self.name))

    def remove(self) -> None:
        """End the container. The rules stay in force: the next container puts its own in their place in one step."""
        try:
            self._daemon.ask(lambda api: api.remove_container(self.name, force=True))
        except APIError as refused:
            if not (isinstance(refused, NotFound) or is_conflict(refused)):
                raise

    def _has_table(self) -> bool:
        """Ask the kernel, from within the container."""
        command = ["nft", "list", "table", "inet", self.table]
        try:
            run = self._daemon.ask(lambda api: api.exec_create(self.name, command)["Id"])
            self._daemon.ask(lambda api: api.exec_start(run))
            return bool(self._daemon.ask(lambda api: api.exec_inspect(run)["ExitCode"]) == 0)
        except APIError as refused:
            if not (isinstance(refused, NotFound) or is_conflict(refused)):  # it has just ended, or been replaced
                raise
            return False

    def _make_config(self) -> dict[str, Any]:
        rules = TABLE.format(table=self.table, bridges=bridge_prefix(self._options.deployment), denied=self._denied())
        host = {
            "NetworkMode": "host",
            "UsernsMode": "host",
            "CapDrop": ["ALL"],
            "CapAdd": ["NET_ADMIN"],
            "SecurityOpt": ["no-new-privileges"],
            "ReadonlyRootfs": True,
            "RestartPolicy": {"Name": "always"},
            "Memory": 64 * 1024 * 1024,
            "PidsLimit": 32,
            "Init": True,
            "LogConfig": {"Type": "json-file", "Config": {"max-size": "1m", "max-file": "2"}},
        }
        return {
            "Image": self._options.guard_image,
            "User": "0:0",
            "Entrypoint": ["sh", "-c", KEEP],
            "Cmd": [],
            "Env": [f"RULES={rules}", f"TABLE={self.table}"],
            "Labels": {
                DEPLOYMENT: self._options.deployment,
                RULES: hashlib.sha256(f"{self._options.guard_image}{KEEP}{rules}{host}".encode()).hexdigest()[:12],
            },
            "HostConfig": host,
        }

    def _denied(self) -> str:
        ranges = [part.strip() for part in self._options.egress_deny.split(",") if part.strip()]
        lines = [f"    ip daddr {{ {', '.join(ranges)} }} drop"] if ranges else []
        return "\n".join(lines if self._options.internet else [*lines, "    drop"])


def _unguarded(error: BackendError, image: str) -> BackendError:
    if isinstance(error, ImageMissing):
        return NetworkUnguarded(f"the guard's image {image} is not there; `make engine-image` builds it")
    return error
