"""A network around a Docker daemon of the tests: a machine with many addresses, name servers, and a route to the engines."""

import json
import secrets
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.engines.backends.dockerd import Dockerd

HOME, HOST = "192.31.196.1", "192.31.196.2"  # of the machine, and of the daemon's host towards the machine
FURTHER = ("192.31.196.3", "192.31.196.4", "192.31.196.5")
NAME_SERVER, PRIVATE = "10.77.0.53", "10.77.0.1"
PORT, CLOSED_PORT, ECHO_PORT = 8765, 8766, 9000

# Serves until it is killed: TCP and UDP on a few ports of all addresses, which send back what they get, after "hello" on TCP; a
# client of UDP that says "more" gets a datagram every 0.1 s for a minute. Names are answered from the file argv[1]: {name:
# [addresses, ttl]}.
SERVE = """
import json, socket, sys, threading, time
import dns.message, dns.rrset
from contextlib import suppress
from pathlib import Path

def answer(query):
    asked = dns.message.from_wire(query)
    said = dns.message.make_response(asked)
    question = asked.question[0]
    addresses, ttl = json.loads(Path(sys.argv[1]).read_text()).get(str(question.name).rstrip(".").lower(), ([], 0))
    if addresses and question.rdtype == 1:
        said.answer.append(dns.rrset.from_text_list(question.name, ttl, "IN", "A", addresses))
    return said.to_wire()

def names():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((name_server, 53))
        while True:
            query, who = server.recvfrom(4096)
            server.sendto(answer(query), who)

def datagrams():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((echoing, echo_port))
        def go_on(who):
            for number in range(600):
                server.sendto(b"%d" % number, who)
                time.sleep(0.1)
        while True:
            said, who = server.recvfrom(4096)
            server.sendto(said, who)
            if said == b"more":
                threading.Thread(target=go_on, args=(who,), daemon=True).start()

def stream(connection):
    with connection, suppress(OSError):
        connection.sendall(b"hello")
        while said := connection.recv(4096):
            connection.sendall(said)

def streams(port):
    with socket.create_server(("0.0.0.0", port), backlog=512) as server:
        while True:
            threading.Thread(target=stream, args=(server.accept()[0],), daemon=True).start()

name_server, echoing, port, closed_port, echo_port = *sys.argv[2:4], *map(int, sys.argv[4:])
jobs = [(names,), (datagrams,), (streams, port), (streams, closed_port), (streams, 53)]
threads = [threading.Thread(target=job, args=args) for job, *args in jobs]
[thread.start() for thread in threads]
print("ready", flush=True)
"""


class Planet:
    """The machine beyond the daemon's host. `addresses` are further ones of it, wherever they lie."""

    def __init__(self, daemon: Dockerd, folder: Path, *addresses: str) -> None:
        self.name = f"rhp{secrets.token_hex(2)}"
        self.zone = folder / "zone.json"
        self.say({})
        self.daemon = daemon
        run("ip", "netns", "add", self.name)
        run("ip", "link", "add", "planet", "netns", str(daemon.pid), "type", "veth", "peer", "name", "eth0", "netns", self.name)
        daemon.run("ip", "address", "add", f"{HOST}/24", "dev", "planet")
        daemon.run("ip", "link", "set", "planet", "up")
        for address in (HOME, *FURTHER):
            self.run("ip", "address", "add", f"{address}/24", "dev", "eth0")
        for address in (NAME_SERVER, PRIVATE, *addresses):
            self.run("ip", "address", "add", f"{address}/32", "dev", "eth0")
        self.run("ip", "link", "set", "eth0", "up")
        self.run("ip", "route", "add", "default", "via", HOST)
        daemon.run("ip", "route", "add", "default", "via", HOME)
        ports = map(str, (PORT, CLOSED_PORT, ECHO_PORT))
        command = ["ip", "netns", "exec", self.name, sys.executable, "-c", SERVE, str(self.zone), NAME_SERVER, FURTHER[0], *ports]
        self._server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._server.stdout is not None
        assert self._server.stdout.readline() == "ready\n"

    def say(self, zone: Mapping[str, tuple[list[str], int]]) -> None:
        """Answer questions about names in this way from now on: (addresses, TTL in seconds)."""
        new = self.zone.with_suffix(".new")
        new.write_text(json.dumps(zone))
        new.rename(self.zone)

    def run(self, *command: str) -> None:
        """Run a command on the machine."""
        run("ip", "netns", "exec", self.name, *command)

    def reaches(self, address: str, port: int) -> bool:
        """Whether the machine can open a connection."""
        code = f"import socket; socket.create_connection(({address!r}, {port}), 1.5)"
        command = ["ip", "netns", "exec", self.name, sys.executable, "-c", code]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def close(self) -> None:
        self._server.kill()
        self._server.wait()
        run("ip", "netns", "delete", self.name)


@contextmanager
def around(daemon: Dockerd, folder: Path, *addresses: str) -> Iterator[Planet]:
    planet = Planet(daemon, folder, *addresses)
    try:
        yield planet
    finally:
        planet.close()


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


# -- programs for the inside of an engine ------------------------------------------------------------------------------

RESOLVE = """
import socket
try:
    print(socket.getaddrinfo({name!r}, 1, socket.AF_INET, socket.SOCK_STREAM)[0][4][0])
except OSError as error:
    print("unknown")
"""

# Holds a stream and a flow of datagrams, and writes what becomes of them into /tmp/said, a line every 0.2 s: whether an echo
# came back, and how many datagrams came.
HOLD = """
import socket, time
from pathlib import Path
stream = socket.create_connection(("{address}", {port}), 3)
stream.settimeout(0.2)
datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
datagrams.connect(("{address}", {echo}))
datagrams.setblocking(False)
datagrams.send(b"more")
got = 0
while True:
    try:
        stream.sendall(b"x")
        echo = bool(stream.recv(64))
    except OSError:
        echo = False
    try:
        while datagrams.recv(64):
            got += 1
    except OSError:
        pass
    Path("/tmp/new").write_text(f"{{echo:d}} {{got}}")
    Path("/tmp/new").rename("/tmp/said")
    time.sleep(0.2)
"""

# Sends a datagram to each of 6,000 ports.
FLOOD = """
import socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
    for port in range(20000, 26000):
        sender.sendto(b"x", ("{address}", port))
"""

# Opens connections and closes them at once, for 4 s; prints how many.
OPEN_AND_CLOSE = """
import socket, time
done, end = 0, time.monotonic() + 4
while time.monotonic() < end:
    try:
        socket.create_connection(("{address}", {port}), 0.3).close()
        done += 1
    except OSError:
        pass
print(done)
"""

# Opens connections until one does not come about within 1 s; prints how many are open.
OPEN_AND_KEEP = """
import socket
held = []
try:
    while len(held) < 1000:
        held.append(socket.create_connection(("{address}", {port}), 1))
except OSError:
    pass
print(len(held))
"""
