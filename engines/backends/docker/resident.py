"""The program in the guard's container: puts the rules in force, keeps them so, and looks names up for the lists of products.

The worker hands over this file's text, and the guard runs the text with its image's Python. So the program has only the
standard library and dnspython, and is always as new as the worker. `python3 -c TEXT keep` is the guard's main program. It gets
in its environment `RULES`, the text of the tables as `ruleset` writes it, `TABLE`, the tables' name, and `BRIDGES`, the prefix
of the names of the engines' bridges. `python3 -c TEXT tell MESSAGE...` sends a message to the main program, and ends with 0
once the message is in force. `python3 -c TEXT disk` prints the path of the block device with the daemon's data.

A message says what bridges may reach, as JSON: `bridges` maps a bridge to `internet`, `none` or a chain, and `chains` has the
chains as `ruleset.chain` makes them. A bridge that no message has named is closed. Messages add up, and the program forgets a
bridge once its interface is gone. Each change is a line of the container's log, `bridges <digest>`: workers read there whether
their message is still what holds.

The rules are compared with the kernel's every two seconds. If somebody changed them, they are put back as a whole.
"""

import base64
import hashlib
import ipaddress
import json
import os
import re
import socket
import struct
import subprocess
import sys
import time
import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SOCKET = "/run/guard.sock"
LOOK_S = 2.0  # between two comparisons with the kernel's rules
NAP_S = 0.2  # longest wait while a name is looked up
MESSAGE_S = 5.0  # for one message
MOST_BYTES = 16 * 1024 * 1024  # of one message
LOOK_UPS = 16  # at a time
SOONEST_S, LATEST_S = 2.0, 300.0  # bounds of the time between two look-ups of a name, whatever its TTL
RETRY_S = 5.0  # after a failed look-up
# An address stays open for so long after its last TTL has ended: an engine may have asked just before the end, and a name whose
# answers go round may come back to the address.
KEPT_S = 20
MOST_ADDRESSES = 256  # of one name

NF_CALL_IPTABLES, LINKINFO, KIND, DATA, NEWLINK, REQUEST, ACK = 36, 18, 1, 2, 16, 1, 4  # of the kernel's netlink interface


@dataclass
class Name:
    """A name, the set that takes its addresses, and when its addresses (by address) and its next look-up are due."""

    text: str
    held: dict[str, float] = field(default_factory=dict)
    due: float = 0.0
    asked: "Future[tuple[set[str], float]] | None" = None
    failed: bool = False


class Keeper:
    """The rules in force, and how to put them back after somebody has changed them."""

    def __init__(self, table: str, bridges: str, rules: str) -> None:
        self.table = table
        self.prefix = bridges
        self.rules = rules
        self.bridges: dict[str, str] = {}
        self.chains: dict[str, dict[str, Any]] = {}
        self.names: dict[str, Name] = {}  # by set
        self._servers = name_servers(Path("/etc/resolv.conf").read_text())
        self._pool = ThreadPoolExecutor(LOOK_UPS)
        self._seen = ""

    def put(self) -> None:
        """Put all rules in force, in place of what is there."""
        show(self.prefix)
        nft("\n".join([self.rules, *self._name_server_lines(), *self._lines(set(), set())]))
        self._seen = self._look()

    def look(self) -> None:
        """Put the rules back if somebody changed them; forget bridges that are gone."""
        show(self.prefix)
        gone = [bridge for bridge in self.bridges if not Path("/sys/class/net", bridge).exists()]
        if gone:
            self.take({}, {}, gone)
        if self._look() != self._seen:
            say("the rules were changed: put back")
            self.put()

    def take(self, bridges: dict[str, str], chains: dict[str, Any], gone: list[str]) -> None:
        """Put further bridges in force, and take the ones away that are gone. Raises CalledProcessError, with nothing changed."""
        before = dict(self.bridges), dict(self.chains), dict(self.names)
        self.bridges = {bridge: chain for bridge, chain in (self.bridges | bridges).items() if bridge not in gone}
        self.chains = {name: chain for name, chain in (self.chains | chains).items() if name in self.bridges.values()}
        wanted = {taker: text for chain in self.chains.values() for taker, text in chain["names"].items()}
        self.names = {taker: self.names.get(taker) or Name(text) for taker, text in wanted.items()}
        try:
            nft("\n".join(self._lines(set(before[1]), set(before[2]))))
        except subprocess.CalledProcessError:
            self.bridges, self.chains, self.names = before
            raise
        self._seen = self._look()
        say(f"bridges {digest(self.bridges)}")

    def look_up(self) -> float:
        """Begin look-ups that are due, and put answers in force; returns the seconds until the next is due, at most LOOK_S."""
        now = time.monotonic()
        for taker, name in self.names.items():
            if name.asked is None and name.due <= now:
                name.asked = self._pool.submit(resolve, name.text)
            elif name.asked is not None and name.asked.done():
                self._keep(taker, name, now)
        if any(name.asked for name in self.names.values()):
            return NAP_S
        return max(0.0, min([LOOK_S, *(name.due - now for name in self.names.values())]))

    def _keep(self, taker: str, name: Name, now: float) -> None:
        """Hold the addresses of an answer, or try again later."""
        asked, name.asked = name.asked, None
        assert asked is not None
        name.held = {address: until for address, until in name.held.items() if until > now}
        if error := asked.exception():
            if not name.failed:
                say(f"{name.text} has no address: {type(error).__name__} {error}"[:300])
            name.failed, name.due = True, now + RETRY_S
            return
        addresses, ttl = asked.result()
        ttl = min(max(ttl, SOONEST_S), LATEST_S)
        name.failed, name.due = False, now + ttl
        name.held |= dict.fromkeys(addresses, now + ttl + KEPT_S)
        try:
            nft("\n".join(self._elements(taker, name)))
        except subprocess.CalledProcessError as refused:  # somebody changed the rules: `look` puts all of them back
            say(f"{name.text}: {refused.stderr}"[:300])

    def _elements(self, taker: str, name: Name) -> list[str]:
        """Lines that fill a name's set. Elements have their times anew: the kernel does not change the time of an element."""
        now = time.monotonic()
        held = [f"{address} timeout {int(until - now) + 1}s" for address, until in name.held.items() if until > now]
        lines = [f"flush set inet {self.table} {taker}"]
        return [*lines, f"add element inet {self.table} {taker} {{ {', '.join(held)} }}"] if held else lines

    def _name_server_lines(self) -> list[str]:
        return [f"add element inet {self.table} name_servers {{ {', '.join(self._servers)} }}"] if self._servers else []

    def _lines(self, old_chains: set[str], old_names: set[str]) -> list[str]:
        """Lines that lead from every bridge to its chain, and remove the old chains and sets that nothing uses any more."""
        of_table = f"inet {self.table}"
        lines = [line for taker, name in self.names.items() for line in self._set_lines(taker, name)]
        for name, chain in self.chains.items():
            for kind in ("egress", "answers"):
                known = f"{of_table} {kind}_{name}"
                lines += [f"add chain {known}", f"flush chain {known}"]
                lines += [f"add rule {known} {rule}" for rule in [*chain[kind], "drop"]]
        lines += [f"flush set {of_table} askers", f"flush map {of_table} egress", f"flush map {of_table} answers"]
        lines += [line for bridge, name in self.bridges.items() for line in self._bridge_lines(bridge, name)]
        for name in old_chains - self.chains.keys():
            lines += [f"delete chain {of_table} egress_{name}", f"delete chain {of_table} answers_{name}"]
        return lines + [f"delete set {of_table} {taker}" for taker in old_names - self.names.keys()]

    def _bridge_lines(self, bridge: str, name: str) -> list[str]:
        """Lines that open a bridge; none for `none`."""
        if name == "none":
            return []
        egress, answers = f"goto egress_{name}", f"goto answers_{name}"
        if name == "internet":
            egress, answers = "goto opened", "accept"
        return [
            f'add element inet {self.table} askers {{ "{bridge}" }}',
            f'add element inet {self.table} egress {{ "{bridge}" : {egress} }}',
            f'add element inet {self.table} answers {{ "{bridge}" : {answers} }}',
        ]

    def _set_lines(self, taker: str, name: Name) -> list[str]:
        kind = "{ type ipv4_addr; flags timeout; }"
        return [f"add set inet {self.table} {taker} {kind}", *self._elements(taker, name)]

    def _look(self) -> str:
        """The kernel's rules as text, without sets whose elements come and go; empty without rules."""
        found = ""
        for family in ("inet", "bridge"):
            command = ["nft", "-s", "list", "table", family, self.table]
            found += subprocess.run(command, capture_output=True, text=True, check=False).stdout
        return re.sub(r"(set (?:n_\w+|new_flows|open_flows) \{[^}]*?)\s*elements = \{[^}]*\}", r"\1", found)


def nft(text: str) -> None:
    """Carry out lines of nft in one step: all or none. Raises CalledProcessError."""
    subprocess.run(["nft", "-f", "-"], input=text, capture_output=True, text=True, check=True)


def say(text: str) -> None:
    print(text, flush=True)


def digest(bridges: dict[str, str]) -> str:
    """Sums up which chain each bridge has, as `ruleset.digest` does."""
    return hashlib.sha256(json.dumps(sorted(bridges.items())).encode()).hexdigest()[:16]


def name_servers(resolv_conf: str) -> list[str]:
    """The IPv4 addresses of a resolv.conf's name servers, without loopback: there the host asks in the engines' place."""
    found = []
    for line in resolv_conf.splitlines():
        words = line.split()
        if words[:1] == ["nameserver"] and len(words) > 1:
            try:
                address = ipaddress.IPv4Address(words[1])
            except ValueError:
                continue
            if not address.is_loopback and str(address) not in found:
                found.append(str(address))
    return found


def resolve(name: str) -> tuple[set[str], float]:
    """The IPv4 addresses of a name, and the seconds until the answer is due again. Raises DNSException."""
    import dns.resolver  # here: a guard without names does without the memory, and an older image without dnspython

    answer = dns.resolver.resolve(f"{name}.", "A", lifetime=5.0)
    addresses = sorted({str(ipaddress.IPv4Address(record.address)) for record in answer})
    return set(addresses[:MOST_ADDRESSES]), float(answer.chaining_result.minimum_ttl)


def show(prefix: str) -> None:
    """Switch on `nf_call_iptables` of every bridge of ours, by netlink messages.

    Without the switch the kernel applies neither table `inet` nor Docker's rules to frames within the bridge. Docker sets a
    switch for all bridges at once, but other programs may reset Docker's switch. A rule in table `bridge` cannot replace the
    switch: only some kernels can match bridges in rules of the bridge family.
    """
    for switch in Path("/sys/class/net").glob(f"{prefix}*/bridge/nf_call_iptables"):
        try:
            if switch.read_text().strip() == "0":
                _switch_on(switch.parent.parent.name)
        except OSError as error:  # the bridge has just gone
            say(f"{switch}: {error}")


def _switch_on(bridge: str) -> None:
    info = _attribute(KIND, b"bridge\0") + _attribute(DATA, _attribute(NF_CALL_IPTABLES, b"\1"))
    body = struct.pack("=BxHiII", 0, 0, socket.if_nametoindex(bridge), 0, 0) + _attribute(LINKINFO, info)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as kernel:
        kernel.send(struct.pack("=IHHII", 16 + len(body), NEWLINK, REQUEST | ACK, 0, 0) + body)
        (error,) = struct.unpack_from("=i", kernel.recv(4096), 16)
    if error:
        raise OSError(-error, f"{bridge}: {os.strerror(-error)}")


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


# -- messages ----------------------------------------------------------------------------------------------------------


def serve(keeper: Keeper, listener: socket.socket, wait_s: float) -> None:
    """Take one message, if one comes within the time, and answer it: empty if it is in force, else with the reason."""
    listener.settimeout(max(0.01, wait_s))
    try:
        connection, _ = listener.accept()
    except TimeoutError:
        return
    with connection:
        try:
            connection.settimeout(MESSAGE_S)
            message = json.loads(_read(connection))
            keeper.take(message["bridges"], message["chains"], [])
            answer = ""
        except subprocess.CalledProcessError as refused:
            answer = f"nft refuses the rules: {refused.stderr}"
        except (OSError, ValueError, LookupError, TypeError) as error:
            answer = f"the message is not understood: {error}"
        try:
            connection.sendall(answer.encode())
        except OSError as error:
            say(f"a message has no answer: {error}")


def _read(connection: socket.socket) -> bytes:
    """Everything that comes until the other side has ended."""
    found = b""
    while len(found) <= MOST_BYTES and (part := connection.recv(65536)):
        found += part
    return found


def tell(parts: list[str]) -> str:
    """Send a message, which comes in parts; returns the answer. Waits until the main program listens. Raises OSError."""
    message = zlib.decompress(base64.b64decode("".join(parts)))
    deadline = time.monotonic() + MESSAGE_S
    with socket.socket(socket.AF_UNIX) as connection:
        while True:
            try:
                connection.connect(SOCKET)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        connection.settimeout(MESSAGE_S * 2)
        connection.sendall(message)
        connection.shutdown(socket.SHUT_WR)
        return _read(connection).decode()


def keep() -> None:
    """The main program."""
    keeper = Keeper(os.environ["TABLE"], os.environ["BRIDGES"], os.environ["RULES"])
    keeper.put()
    Path(SOCKET).unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(SOCKET)
        listener.listen(64)
        say(f"bridges {digest({})}")
        next_look = time.monotonic() + LOOK_S
        while True:
            serve(keeper, listener, min(keeper.look_up(), max(0.0, next_look - time.monotonic())))
            if time.monotonic() >= next_look:
                keeper.look()
                next_look = time.monotonic() + LOOK_S


def disk() -> str:
    """The whole block device with the container's /etc/resolv.conf, as a path of the host; empty if it is not on one device."""
    number = Path("/etc/resolv.conf").stat().st_dev
    device = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    if not device.exists():
        return ""
    device = device.resolve()
    whole = device.parent if (device / "partition").exists() else device
    return f"/dev/{whole.name.replace('!', '/')}"


def main(order: str, *parts: str) -> None:
    if order == "tell":
        sys.exit(tell(list(parts)) or None)
    if order == "disk":
        sys.exit(print(disk()))
    try:
        keep()
    except subprocess.CalledProcessError as refused:
        sys.exit(f"nft refuses the rules: {refused.stderr}")


if __name__ == "__main__":
    main(*sys.argv[1:])
