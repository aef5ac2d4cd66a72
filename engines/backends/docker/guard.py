"""The guard: two nftables tables isolate engines from each other, from the host and from the networks behind the host.

The guard is a small container of the guard's image in the host's network. The guard puts both tables in force, checks the tables
every two seconds, and restores changed tables. The guard also makes the kernel apply the rules to frames within a bridge. Docker
starts the container again after a restart of the daemon and after a reboot. An engine starts only while the guard's container
runs and both tables exist. docs/decisions/0020 and 0023 give the reasons.
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

TRIES = 50  # checks of a starting guard before giving up
RULES = "roundhouse.guard"  # label: hash of the rules kept in force by a guard's container
DENIED = "roundhouse.denied"  # label: addresses of the control plane's servers denied by the rules

# The rules in words:
# - From an engine to the host (chain `input`): only packets of established connections.
# - From an engine through the host (chain `forward` of table `inet`): nothing to other bridges, with or without engines; nothing
#   to the ranges in ORCH_ENGINE_EGRESS_DENY; nothing to the control plane's servers, on any machine; no IPv6.
# - From engine to engine on one bridge: nothing. Docker (enable_icc=false, where engines are reached by ports) and the rule
#   `oifname "rh-*" drop` enforce the isolation, too. The rule sees frames within a bridge only with the help of SHOW.
# - Clients (containers calling engines by name) are on the engines' bridge. Clients may open connections to engines. All other
#   connections within the bridge are forbidden.
# Table `bridge` restricts engines within a bridge, because frames within a bridge need not pass the `inet` rules:
# - The table recognizes engines by the first bytes of their MAC addresses. Engines can neither forge packets nor change their MAC
#   addresses, because engines have no capabilities.
# - The table keeps no connection state, because some kernels cannot track connections of bridges.
# - From an engine to a client only two kinds of packets pass: ARP, required for answers, and all TCP packets except the first of
#   a connection. Thus an engine can answer on a client's connection, but cannot open a connection.
# Chains of priority -10 run before Docker's chains. A dropped packet stays dropped. An accepted packet must still pass Docker's
# chains.
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

HOST: dict[str, Any] = {  # the HostConfig of the guard's container
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

MASK = "ff:ff:ff:ff:00:00"  # selects the bytes of a MAC address shared by all engines of a deployment

# Switches on `nf_call_iptables` for one bridge, by a netlink message. Without the switch the kernel applies neither table `inet`
# nor Docker's rules to frames within the bridge. Docker sets a switch for all bridges at once, but other programs may reset
# Docker's switch. A rule in table `bridge` cannot replace the switch: only some kernels can match bridges in rules of the bridge
# family.
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

# The main program of the guard's container: puts the rules in force, checks them every two seconds, and restores changed rules.
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

# The program in KEEP is halted first: otherwise KEEP would restore the deleted tables.
END = 'kill -STOP $(cat /proc/1/task/1/children); nft delete table inet "$TABLE"; nft delete table bridge "$TABLE"'

# Announces the new owner of an IP address to all containers on the bridge, by a gratuitous ARP packet. A client of the previous
# owner still has the previous MAC address in its ARP cache. Without an announcement the client would keep sending to the previous
# MAC address, because a new engine sends nothing by itself.
ANNOUNCE = """
import socket, sys
bridge, ip, mac = sys.argv[1], socket.inet_aton(sys.argv[2]), bytes.fromhex(sys.argv[3].replace(":", ""))
request = bytes.fromhex("0001080006040001") + mac + ip + bytes(6) + ip
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
    raw.bind((bridge, 0))
    raw.send(bytes.fromhex("ff" * 6) + mac + bytes.fromhex("0806") + request)
"""


def bridge_prefix(deployment: str) -> str:
    """The prefix of the names of a deployment's bridges; short, as an interface's name has at most 15 characters."""
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
        self._inherited: frozenset[str] = frozenset()  # addresses denied by the previous guard
        self._rules = self._hash()
        self._seen = ""  # `StartedAt` of the container's run in which the table was found
        self._resolv_conf = ""  # of the daemon's host; empty until read

    def check(self) -> None:
        """Return once the rules are in force; starts the guard if needed.

        Raises NetworkUnguarded, or BackendUnavailable for a failure likely to pass.
        """
        gone = 0  # how often no guard with the worker's rules existed
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
        """The error for a missing guard.

        Workers with different settings replace each other's guard, as long as both kinds of workers run.
        """
        if gone > 1:
            return BackendUnavailable(f"workers with different settings keep replacing container {self.name}")
        return NetworkUnguarded(f"container {self.name} does not put the network rules in force; see the log of the container")

    def started_at(self) -> str:
        """The daemon's timestamp of the last start of the guard's container; empty without a guard."""
        state = self._state()
        return state["StartedAt"] if state else ""

    def resolv_conf(self) -> str:
        """The text of /etc/resolv.conf of the daemon's host; empty as long as no guard runs. Raises BackendUnavailable.

        The text is read from the guard's container, which Docker gives a copy of the host's file.
        """
        if not self._resolv_conf:
            with suppress(NetworkUnguarded):  # `start` reports a missing guard
                self.check()
                self._resolv_conf = self._read("/etc/resolv.conf")
        return self._resolv_conf

    def _read(self, path: str) -> str:
        """The text of a file in the container; empty if the file or the container is missing."""
        try:
            archive, _ = self._daemon.ask(lambda api: api.get_archive(self.name, path))
        except APIError:  # for instance because the container is being replaced
            return ""
        with tarfile.open(fileobj=io.BytesIO(b"".join(archive))) as files:
            found = files.extractfile(files.next() or "")
            return found.read().decode(errors="replace") if found else ""

    def _state(self) -> dict[str, Any] | None:
        """The daemon's `State` of the guard's container; None without a container, or after removing an outdated container.

        A container is outdated if its rules differ from the worker's rules, or if it does not deny an address known to the
        worker. Additional denied addresses are harmless. If only addresses differ, the next guard also denies all addresses of
        the removed guard. Thus workers resolving one name to different addresses end up with a common guard.
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
        """Create and start the container; another worker may do the same at the same time."""
        try:
            self._daemon.create(self._config(self._servers.now() | self._inherited), self.name)
        except APIError as refused:
            if not is_conflict(refused):
                raise _unguarded(named(refused, "the guard"), self._options.guard_image) from refused
        try:
            self._daemon.ask(lambda api: api.start(self.name))
        except APIError as refused:
            if not _is_passing(refused):  # else `check` tries again
                raise

    def remove(self) -> None:
        """Remove the container. The rules stay in force until the next container replaces them in one step."""
        try:
            self._daemon.ask(lambda api: api.remove_container(self.name, force=True))
        except APIError as refused:
            if not _is_passing(refused):
                raise

    def end(self) -> None:
        """Delete the rules and the container. The caller must ensure that no engine runs or starts any more."""
        self._succeeds(["sh", "-c", END])
        self.remove()

    def announce(self, bridge: str, ip: str, mac: str) -> None:
        """Announce the new owner (`mac`) of an IP address to all containers on the bridge. Raises NetworkUnguarded."""
        for tries, _ in enumerate(self._daemon.rounds()):
            if self._succeeds(["python3", "-I", "-S", "-c", ANNOUNCE, bridge, ip, mac]):
                return
            if tries == TRIES:
                raise NetworkUnguarded(f"container {self.name} cannot announce engines on {bridge}")
            self.check()

    def _has_table(self) -> bool:
        """Whether the kernel has the tables. One table is enough to check, as both tables are put in force in one step."""
        return self._succeeds(["nft", "list", "table", "bridge", self.table])

    def _succeeds(self, command: list[str]) -> bool:
        """Whether a command exits with 0 in the container; False also if the container is missing or stopped."""
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
        """A hash of everything in which two guards can differ, except the addresses of the control plane's servers."""
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
        if servers:  # limited to engines: a client on their network may be a worker, which needs the servers
            engines = f"ether saddr & {MASK} == {mac_prefix(self._options.deployment)}:00:00 "
            whose = engines if self._options.reach == "container" else ""
            lines.append(f"    {whose}ip daddr {{ {', '.join(sorted(servers))} }} drop")
        return "\n".join(lines if self._options.internet else [*lines, "    drop"])


def _is_passing(refused: APIError) -> bool:
    """Whether the container has just ended, or was removed or replaced, for instance by another worker."""
    return isinstance(refused, NotFound) or is_conflict(refused) or "is not running" in said_by(refused)


def _unguarded(error: BackendError, image: str) -> BackendError:
    if isinstance(error, ImageMissing):
        return NetworkUnguarded(f"the guard's image {image} does not exist on the engines' host; `make engine-image` builds it")
    return error
