"""Looking at a network from inside a container, and a machine beyond the host to look at."""

import json
import secrets
import subprocess
import sys
from contextlib import contextmanager

from engines.backends.docker.containers import DEPLOYMENT
from tests import turns
from tests.engines.backends import dock
from tests.engines.backends.runtimes import IMAGE
from tests.waiting import until

METADATA = "169.254.169.254"
WORLD = "192.31.196.1"  # an address that no service of the internet has: here, a machine beyond the host
GATEWAY = "192.31.196.2"
WORLD_PORT = 8765

CONNECT = """
import json, socket, sys
from concurrent.futures import ThreadPoolExecutor
def opens(target):
    try:
        socket.create_connection(tuple(target), timeout=1.5).close()
    except OSError:
        return False
    return True
targets = json.loads('''{targets}''')
with ThreadPoolExecutor(32) as pool:
    print(json.dumps([target for target, is_open in zip(targets, pool.map(opens, targets)) if is_open]))
"""


def reached(container, *targets):
    """Those of the (address, port) that the container can connect to.

    CONNECT always prints something. On a busy machine the daemon sometimes passes nothing on: the container is asked again.
    """
    code = CONNECT.format(targets=json.dumps(targets))
    found = until(lambda: dock.run_inside(container, code), 30, "the daemon passes on what the container prints")
    return {tuple(target) for target in json.loads(found)}


def address_of(container):
    container.reload()
    (network,) = container.attrs["NetworkSettings"]["Networks"].values()
    return network["IPAddress"], network["Gateway"]


HEARD = """
import socket
listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
listener.bind(("0.0.0.0", 9999))
listener.settimeout(3)
try:
    while True:
        print(listener.recvfrom(64)[0].decode())
except TimeoutError:
    print("nothing more")
"""


def say(container, address, word):
    """Send a datagram to HEARD's port."""
    code = f"import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto({word.encode()!r}, ({address!r}, 9999))"
    dock.run_inside(container, code)


def run(*command):
    subprocess.run(command, check=True, capture_output=True)


@contextmanager
def world():
    """A machine beyond the host, with a metadata service too: a network namespace that answers on WORLD_PORT. Yields its name.

    The host has one route to the addresses, so processes of tests take turns.
    """
    with turns.alone("world"):
        yield from _world()


def _world():
    name = f"rhw{secrets.token_hex(2)}"
    run("ip", "netns", "add", name)
    server = None
    try:
        run("ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
        run("ip", "address", "add", f"{GATEWAY}/30", "dev", name)
        run("ip", "link", "set", name, "up")
        inside = ("ip", "-n", name)
        for address in (f"{WORLD}/30", f"{METADATA}/32"):
            run(*inside, "address", "add", address, "dev", "eth0")
        run(*inside, "link", "set", "eth0", "up")
        run(*inside, "route", "add", "default", "via", GATEWAY)
        run("ip", "route", "replace", f"{METADATA}/32", "via", WORLD, "dev", name)
        command = [sys.executable, "-m", "http.server", str(WORLD_PORT), "--directory", "/proc/self/task"]
        server = subprocess.Popen(["ip", "netns", "exec", name, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(lambda: run_ok(WORLD))
        yield name
    finally:
        if server:
            server.kill()
            server.wait()
        run("ip", "netns", "delete", name)


def run_ok(address):
    code = f"import socket; socket.create_connection(({address!r}, {WORLD_PORT}), 1)"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


GET = """
import http.client
connection = http.client.HTTPConnection({host!r}, {port}, timeout=3)
connection.request("GET", "/health")
print(connection.getresponse().status)
"""


def status_from(world, host, port):
    """The status with which an engine at the address answers that machine; None where it cannot connect."""
    command = ["ip", "netns", "exec", world, sys.executable, "-c", GET.format(host=host, port=port)]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    return int(told.stdout) if told.returncode == 0 else None


@contextmanager
def unguarded(client, backend):
    """A container of the same image on Docker's default network."""
    labels = {DEPLOYMENT: backend.options.deployment}
    container = client.containers.run(IMAGE, ["sleep", "600"], labels=labels, detach=True)
    try:
        yield container
    finally:
        container.remove(force=True)
