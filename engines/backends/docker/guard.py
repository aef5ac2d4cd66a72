"""The guard: two nftables tables isolate engines from each other, from the host and from the networks behind the host.

The guard is a small container of the guard's image in the host's network. Its program, `resident`, puts the rules of `ruleset`
in force, checks the rules every two seconds, and restores changed rules. Docker starts the container again after a restart of
the daemon and after a reboot. An engine starts only while the guard's container runs and both tables exist.
docs/decisions/0020, 0023 and 0907 give the reasons.
"""

import base64
import hashlib
import io
import json
import re
import tarfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from docker.errors import APIError

from engines.backends.base import BackendError, BackendUnavailable, ImageMissing, NetworkUnguarded
from engines.backends.docker import ruleset
from engines.backends.docker.containers import DEPLOYMENT
from engines.backends.docker.control_plane import Addresses
from engines.backends.docker.daemon import Daemon, NotFound, is_conflict, named, said_by
from engines.backends.docker.options import Options

TRIES = 15  # checks of a starting guard, over 4 s of growing pauses, before giving up
RULES = "roundhouse.guard"  # label: hash of the rules kept in force by a guard's container
DENIED = "roundhouse.denied"  # label: addresses of the control plane's servers denied by the rules

RESIDENT = Path(__file__).with_name("resident.py").read_text()
PART = 100_000  # characters per argument of a command: Linux takes 131,071
LINES = 50  # of the guard's log, in which its program says which bridges it knows

HOST: dict[str, Any] = {  # the HostConfig of the guard's container
    "NetworkMode": "host",
    "UsernsMode": "host",
    "CapDrop": ["ALL"],
    "CapAdd": ["NET_ADMIN", "NET_RAW"],
    "SecurityOpt": ["no-new-privileges"],
    "ReadonlyRootfs": True,
    "Tmpfs": {"/run": "rw,nosuid,nodev,noexec,mode=0700,size=1m"},  # the socket of the guard's program
    "RestartPolicy": {"Name": "always"},
    "Memory": 256 * 1024 * 1024,  # the program takes 15 to 40 MB; up to ORCH_MAX_BOOTS commands of workers come on top
    "PidsLimit": 128,
    "Init": True,
    "LogConfig": {"Type": "json-file", "Config": {"max-size": "1m", "max-file": "2"}},
}

# The guard's program is halted first: otherwise the program would restore the deleted tables.
END = 'kill -STOP $(cat /proc/1/task/1/children); nft delete table inet "$TABLE"; nft delete table bridge "$TABLE"'

# Announces the new owner of an IP address to all containers on the bridge, by a gratuitous ARP packet. A client of the previous
# owner still has the previous MAC address in its ARP cache. Without an announcement the client would keep sending to the
# previous MAC address, because a new engine sends nothing by itself.
ANNOUNCE = """
import socket, sys
bridge, ip, mac = sys.argv[1], socket.inet_aton(sys.argv[2]), bytes.fromhex(sys.argv[3].replace(":", ""))
request = bytes.fromhex("0001080006040001") + mac + ip + bytes(6) + ip
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
    raw.bind((bridge, 0))
    raw.send(bytes.fromhex("ff" * 6) + mac + bytes.fromhex("0806") + request)
"""


class Guard:
    """The guard of one deployment on one daemon."""

    def __init__(self, daemon: Daemon, options: Options) -> None:
        self.name = f"{options.deployment}-guard"
        self.table = ruleset.table_name(options.deployment)
        self._bridges = ruleset.bridge_prefix(options.deployment)
        self._daemon = daemon
        self._options = options
        self._servers = Addresses(options.control_plane)
        self._inherited: frozenset[str] = frozenset()  # addresses denied by the previous guard
        self._rules = self._hash()
        self.seen = ""  # `StartedAt` of the container's run in which the table was found
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
                if state and state["Running"] and (self.seen == state["StartedAt"] or self._has_table()):
                    self.seen = state["StartedAt"]
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
        if not self._resolv_conf and self.is_up():
            self._resolv_conf = self._read("/etc/resolv.conf")
        return self._resolv_conf

    def is_up(self) -> bool:
        """Whether the rules are in force; starts the guard if needed. Raises BackendUnavailable."""
        with suppress(NetworkUnguarded):  # `start` reports a missing guard
            self.check()
            return True
        return False

    def disk(self) -> str:
        """The path of the block device with the daemon's data; empty if there is none, or if the guard is being replaced."""
        status, said = self._run(["python3", "-I", "-S", "-c", RESIDENT, "disk"])
        return said.strip() if status == 0 else ""

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

    def runs(self) -> bool:
        """Whether a guard with the worker's rules runs; starts and removes nothing."""
        try:
            found = self._daemon.ask(lambda api: api.inspect_container(self.name))
        except NotFound:
            return False
        return bool(found["Config"]["Labels"].get(RULES) == self._rules and found["State"]["Running"])

    def knows(self) -> str:
        """The digest (`ruleset.digest`) of the bridges that the guard's program knows; empty if the program does not say."""
        try:
            log = self._daemon.ask(lambda api: api.logs(self.name, tail=LINES))
        except APIError as refused:
            if not _is_passing(refused):
                raise
            return ""
        found = re.findall(r"^bridges ([0-9a-f]+)$", log.decode(errors="replace"), re.MULTILINE)
        return found[-1] if found else ""

    def tell(self, bridges: Mapping[str, str], chains: Mapping[str, Any]) -> None:
        """Tell the guard's program what bridges may reach; returns once this is in force. Raises NetworkUnguarded.

        `bridges`: the chain of each bridge (`ruleset.chain_of`). `chains`: the lists among them (`ruleset.chain`).
        """
        message = base64.b64encode(zlib.compress(json.dumps({"bridges": bridges, "chains": chains}).encode())).decode()
        parts = [message[at : at + PART] for at in range(0, len(message), PART)]
        for tries, _ in enumerate(self._daemon.rounds()):
            status, said = self._run(["python3", "-I", "-S", "-c", RESIDENT, "tell", *parts])
            if status == 0:
                return
            if tries == TRIES:
                raise NetworkUnguarded(f"container {self.name} does not put the rules of products in force: {said[-500:]}")
            self.check()

    def _has_table(self) -> bool:
        """Whether the kernel has the tables. One table is enough to check, as both tables are put in force in one step."""
        return self._succeeds(["nft", "list", "table", "bridge", self.table])

    def _succeeds(self, command: list[str]) -> bool:
        """Whether a command exits with 0 in the container; False also if the container is missing or stopped."""
        return self._run(command)[0] == 0

    def _run(self, command: list[str]) -> tuple[int | None, str]:
        """The exit status of a command in the container, and its output; no status if the container is missing or stopped."""
        try:
            run = self._daemon.ask(lambda api: api.exec_create(self.name, command)["Id"])
            said = self._daemon.ask(lambda api: api.exec_start(run))
            return self._daemon.ask(lambda api: api.exec_inspect(run)["ExitCode"]), said.decode(errors="replace")
        except APIError as refused:
            if not _is_passing(refused):
                raise
            return None, ""

    def _config(self, servers: frozenset[str]) -> dict[str, Any]:
        return {
            "Image": self._options.guard_image,
            "User": "0:0",
            "Entrypoint": ["python3", "-I", "-c", RESIDENT, "keep"],
            "Cmd": [],
            "Env": [f"RULES={ruleset.write(self._options, servers)}", f"TABLE={self.table}", f"BRIDGES={self._bridges}"],
            "Labels": {
                DEPLOYMENT: self._options.deployment,
                RULES: self._rules,
                DENIED: " ".join(sorted(servers)),
            },
            "HostConfig": HOST,
        }

    def _hash(self) -> str:
        """A hash of everything in which two guards can differ, except the addresses of the control plane's servers."""
        whole = f"{self._options.guard_image}{RESIDENT}{ruleset.write(self._options, ())}{HOST}"
        return hashlib.sha256(whole.encode()).hexdigest()[:12]


def _is_passing(refused: APIError) -> bool:
    """Whether the container has just ended, or was removed or replaced, for instance by another worker."""
    return isinstance(refused, NotFound) or is_conflict(refused) or "is not running" in said_by(refused)


def _unguarded(error: BackendError, image: str) -> BackendError:
    if isinstance(error, ImageMissing):
        return NetworkUnguarded(f"the guard's image {image} does not exist on the engines' host; `make engine-image` builds it")
    return error
