"""What keeps engines away from each other, from the host and from what lies behind it: two tables of nftables rules on the host.

A small container of the guard's image, in the host's network, puts the tables in force, looks at them every two seconds and puts
them back when somebody changed them. It also sees to it that the rules are asked about what stays within a bridge. Docker starts
the container again after its own restart and after a reboot. No engine is started unless that container runs and the tables are
there. docs/decisions/0020 and 0023 say why it is done this way.
"""

import hashlib
import io
import tarfile
from contextlib import suppress
from typing import Any

from docker.errors import APIError

from engines.backends.base import BackendError, BackendUnavailable, ImageMissing, NetworkUnguarded
from engines.backends.docker.containers import DEPLOYMENT, digits, mac_prefix
from engines.backends.docker.control_plane import Addresses
from engines.backends.docker.daemon import Daemon, NotFound, is_conflict, named, said_by
from engines.backends.docker.options import Options

TRIES = 50  # looks at a guard that is starting
RULES = "roundhouse.guard"  # label: which rules a guard's container keeps
DENIED = "roundhouse.denied"  # label: addresses of our own servers among them

# In words. To the host itself: nothing but answers. Through the host: not to another bridge, engines' or not; not where the
# deployment forbids; not to our own servers, on whatever machine; no IPv6. Engines on one bridge are kept apart by Docker
# (enable_icc=false) and by the first drop here: see SHOW.
# Containers that call engines by name are on the same bridge, and may open connections to engines; nobody else to anybody. That
# is for the bridge itself to keep, as such frames never need to pass the host. It knows engines by how their MAC addresses begin,
# and keeps no state, since not every kernel can for bridges: of an engine it lets pass what belongs to a connection that somebody
# else opened, which in TCP is everything but the first packet, and ARP, without which there are no answers; to another engine,
# nothing at all. Engines cannot make packets of their own, nor change their address: they have no capabilities.
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
    iifname "{bridges}*" ether saddr & {mask} != {engines} ether daddr & {mask} == {engines} accept
    oifname "rh-*" drop
    oifname "br-*" drop
    oifname "docker*" drop
    meta nfproto ipv6 drop
{denied}
  }}
}}
table bridge {table} {{}}
delete table bridge {table}
table bridge {table} {{
  chain forward {{
    type filter hook forward priority -10; policy accept;
    ether saddr & {mask} != {engines} accept
    ether daddr & {mask} == {engines} drop
    ether type arp accept
    ether type ip tcp flags & (ack | rst) != 0 accept
    drop
  }}
}}
"""

HOST: dict[str, Any] = {  # the HostConfig of its container
    "NetworkMode": "host",
    "UsernsMode": "host",
    "CapDrop": ["ALL"],
    "CapAdd": ["NET_ADMIN", "NET_RAW"],
    "SecurityOpt": ["no-new-privileges"],
    "ReadonlyRootfs": True,
    "RestartPolicy": {"Name": "always"},
    "Memory": 64 * 1024 * 1024,
    "PidsLimit": 32,
    "Init": True,
    "LogConfig": {"Type": "json-file", "Config": {"max-size": "1m", "max-file": "2"}},
}

MASK = "ff:ff:ff:ff:00:00"  # of an address: the part that all engines of a deployment share

# The first table, and Docker's rules, are asked about frames within a bridge only where the kernel was told so: for all bridges,
# as Docker does and others may undo, or for one, as here. Only some kernels tell bridges apart in rules of the bridge family.
SHOW = """
import os, socket, struct, sys
def attribute(kind, value):
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)
NF_CALL_IPTABLES, LINKINFO, KIND, DATA, NEWLINK, REQUEST, ACK = 36, 18, 1, 2, 16, 1, 4
info = attribute(KIND, b"bridge\\0") + attribute(DATA, attribute(NF_CALL_IPTABLES, b"\\1"))
body = struct.pack("=BxHiII", 0, 0, socket.if_nametoindex(sys.argv[1]), 0, 0) + attribute(LINKINFO, info)
with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as kernel:
    kernel.send(struct.pack("=IHHII", 16 + len(body), NEWLINK, REQUEST | ACK, 0, 0) + body)
    (error,) = struct.unpack_from("=i", kernel.recv(4096), 16)
sys.exit(error and f"{sys.argv[1]}: {os.strerror(-error)}")
"""

KEEP = """
show() {
  for switch in /sys/class/net/"$BRIDGES"*/bridge/nf_call_iptables; do
    [ -e "$switch" ] && read -r on <"$switch" && [ "$on" = 0 ] || continue
    bridge=${switch#/sys/class/net/}
    python3 -I -S -c "$SHOW" "${bridge%%/*}"
  done
}
look() { nft list table inet "$TABLE" && nft list table bridge "$TABLE"; }
put() { printf '%s' "$RULES" | nft -f - || exit 1; now=$(look); }
trap 'exit 0' TERM INT
show
put
while :; do
  sleep 2 & wait $!
  show
  [ "$(look 2>/dev/null)" = "$now" ] || { echo 'the rules were changed: put back'; put; }
done
"""

# Whoever keeps the tables is halted first: it would put them back.
END = 'kill -STOP $(cat /proc/1/task/1/children); nft delete table inet "$TABLE"; nft delete table bridge "$TABLE"'

# Whoever spoke with another engine at this IP address has that one's MAC address in its cache, and would go on sending there, as
# a new engine says nothing by itself: this announces the new owner to everyone on the bridge.
ANNOUNCE = """
import socket, sys
bridge, ip, mac = sys.argv[1], socket.inet_aton(sys.argv[2]), bytes.fromhex(sys.argv[3].replace(":", ""))
request = bytes.fromhex("0001080006040001") + mac + ip + bytes(6) + ip
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
    raw.bind((bridge, 0))
    raw.send(bytes.fromhex("ff" * 6) + mac + bytes.fromhex("0806") + request)
"""


def bridge_prefix(deployment: str) -> str:
    """How the names of this deployment's bridges begin, in the 15 characters that an interface's name may have."""
    return f"rh-{digits(deployment)}"


class Guard:
    """The guard of one deployment on one daemon."""

    def __init__(self, daemon: Daemon, options: Options) -> None:
        self.name = f"{options.deployment}-guard"
        self.table = f"roundhouse_{digits(options.deployment)}"
        self._bridges = bridge_prefix(options.deployment)
        self._daemon = daemon
        self._options = options
        self._servers = Addresses(options.control_plane)
        self._inherited: frozenset[str] = frozenset()  # addresses that the guard before us denied
        self._rules = self._hash()
        self._seen = ""  # the run of the container for which the table was seen
        self._resolv_conf = ""  # of the daemon's host, once it was read

    def check(self) -> None:
        """Return when the rules are in force, putting them there when they are not.

        Raises NetworkUnguarded, and BackendUnavailable when that may well pass.
        """
        gone = 0  # how often there was no guard with our rules
        try:
            for tries, _ in enumerate(self._daemon.rounds()):
                state = self._state()
                gone += state is None
                if state and state["Running"] and (self._seen == state["StartedAt"] or self._has_table()):
                    self._seen = state["StartedAt"]
                    return
                if tries == TRIES:
                    raise self._failed(gone)
                if not (state and state["Running"]):
                    self._start()
        except APIError as refused:
            error = named(refused, f"container {self.name}")
            raise (BackendUnavailable if error.retryable else NetworkUnguarded)(str(error)) from refused

    def _failed(self, gone: int) -> BackendError:
        """Why the guard is not there. Workers with other settings replace it with theirs, as long as both kinds run."""
        if gone > 1:
            return BackendUnavailable(f"others keep replacing container {self.name}: workers that have other settings")
        return NetworkUnguarded(f"container {self.name} does not put the rules in force; its log says why")

    def started_at(self) -> str:
        """When the guard's container was started last; empty if there is none."""
        state = self._state()
        return state["StartedAt"] if state else ""

    def resolv_conf(self) -> str:
        """How names are looked up on the daemon's host, as the guard in its network was told; empty as long as there is no guard.

        Raises BackendUnavailable.
        """
        if not self._resolv_conf:
            with suppress(NetworkUnguarded):  # which a start says
                self.check()
                self._resolv_conf = self._read("/etc/resolv.conf")
        return self._resolv_conf

    def _read(self, path: str) -> str:
        """A file of the container; empty if there is none, or none to be had."""
        try:
            archive, _ = self._daemon.ask(lambda api: api.get_archive(self.name, path))
        except APIError:  # it is being replaced, for instance
            return ""
        with tarfile.open(fileobj=io.BytesIO(b"".join(archive))) as files:
            found = files.extractfile(files.next() or "")
            return found.read().decode(errors="replace") if found else ""

    def _state(self) -> dict[str, Any] | None:
        """What the daemon says of the container; None if there is none, or one with other rules, which is removed.

        One that denies more addresses than we know of is as good; of one that denies others, the next takes over what it denied.
        So workers that are told different addresses of one name come to agree.
        """
        try:
            found = self._daemon.ask(lambda api: api.inspect_container(self.name))
        except NotFound:
            return None
        labels = found["Config"]["Labels"]
        denied = frozenset(labels.get(DENIED, "").split()) if labels.get(RULES) == self._rules else frozenset()
        if labels.get(RULES) != self._rules or not self._servers.now() <= denied:
            self._inherited |= denied
            self.remove()
            return None
        state: dict[str, Any] = found["State"]
        return state

    def _start(self) -> None:
        """Make and start the container; another worker may be doing the same."""
        try:
            self._daemon.create(self._config(self._servers.now() | self._inherited), self.name)
        except APIError as refused:
            if not is_conflict(refused):
                raise _unguarded(named(refused, "the guard"), self._options.guard_image) from refused
        try:
            self._daemon.ask(lambda api: api.start(self.name))
        except APIError as refused:
            if not _is_passing(refused):  # look again
                raise

    def remove(self) -> None:
        """End the container. The rules stay in force: the next container puts its own in their place in one step."""
        try:
            self._daemon.ask(lambda api: api.remove_container(self.name, force=True))
        except APIError as refused:
            if not _is_passing(refused):
                raise

    def end(self) -> None:
        """Take the rules away, and the container. Nothing that they keep apart may run or start any more."""
        self._succeeds(["sh", "-c", END])
        self.remove()

    def announce(self, bridge: str, ip: str, mac: str) -> None:
        """Tell everyone on the bridge who has an IP address now. Raises NetworkUnguarded."""
        for tries, _ in enumerate(self._daemon.rounds()):
            if self._succeeds(["python3", "-I", "-S", "-c", ANNOUNCE, bridge, ip, mac]):
                return
            if tries == TRIES:
                raise NetworkUnguarded(f"container {self.name} cannot announce engines on {bridge}")
            self.check()

    def _has_table(self) -> bool:
        """Ask the kernel, from within the container. The two tables are put there in one step."""
        return self._succeeds(["nft", "list", "table", "bridge", self.table])

    def _succeeds(self, command: list[str]) -> bool:
        """Run a command in the container. False also when there is no container, or one that does not run."""
        try:
            run = self._daemon.ask(lambda api: api.exec_create(self.name, command)["Id"])
            self._daemon.ask(lambda api: api.exec_start(run))
            return bool(self._daemon.ask(lambda api: api.exec_inspect(run)["ExitCode"]) == 0)
        except APIError as refused:
            if not _is_passing(refused):
                raise
            return False

    def _config(self, servers: frozenset[str]) -> dict[str, Any]:
        return {
            "Image": self._options.guard_image,
            "User": "0:0",
            "Entrypoint": ["sh", "-c", KEEP],
            "Cmd": [],
            "Env": [f"RULES={self._table(servers)}", f"TABLE={self.table}", f"BRIDGES={self._bridges}", f"SHOW={SHOW}"],
            "Labels": {
                DEPLOYMENT: self._options.deployment,
                RULES: self._rules,
                DENIED: " ".join(sorted(servers)),
            },
            "HostConfig": HOST,
        }

    def _hash(self) -> str:
        """Stands for all that makes two guards differ, but for the addresses of our servers."""
        whole = f"{self._options.guard_image}{SHOW}{KEEP}{self._table(frozenset())}{HOST}"
        return hashlib.sha256(whole.encode()).hexdigest()[:12]

    def _table(self, servers: frozenset[str]) -> str:
        deployment = self._options.deployment
        return TABLE.format(
            table=self.table,
            bridges=self._bridges,
            mask=MASK,
            engines=f"{mac_prefix(deployment)}:00:00",
            denied=self._denied(servers),
        )

    def _denied(self, servers: frozenset[str]) -> str:
        ranges = [part.strip() for part in self._options.egress_deny.split(",") if part.strip()]
        lines = [f"    ip daddr {{ {', '.join(ranges)} }} drop"] if ranges else []
        if servers:  # a client on an engines' network may be one of our own processes
            engines = f"ether saddr & {MASK} == {mac_prefix(self._options.deployment)}:00:00 "
            whose = engines if self._options.reach == "container" else ""
            lines.append(f"    {whose}ip daddr {{ {', '.join(sorted(servers))} }} drop")
        return "\n".join(lines if self._options.internet else [*lines, "    drop"])


def _is_passing(refused: APIError) -> bool:
    """Whether the container has just ended, been removed or been replaced, by another worker for instance."""
    return isinstance(refused, NotFound) or is_conflict(refused) or "is not running" in said_by(refused)


def _unguarded(error: BackendError, image: str) -> BackendError:
    if isinstance(error, ImageMissing):
        return NetworkUnguarded(f"the guard's image {image} is not there; `make engine-image` builds it")
    return error
