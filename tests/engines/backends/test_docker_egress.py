"""What engines may reach outside, tried from inside them, on a daemon with a network of its own around it."""

import os
import time
from dataclasses import replace
from ipaddress import ip_network

import pytest

from engines.backends.docker import ruleset
from tests.engines.backends import dock, planet
from tests.engines.backends.dockerd import Dockerd
from tests.engines.backends.inside import address_of, reached, unguarded
from tests.engines.backends.planet import CLOSED_PORT, ECHO_PORT, FURTHER, HOME, HOST, NAME_SERVER, PORT, PRIVATE
from tests.engines.backends.runtimes import spec
from tests.waiting import until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes network interfaces")

# One address of each range that is not the internet, and that a machine can have.
DENIED = [
    str(network[-2 if network.num_addresses > 1 else 0])
    for network in map(ip_network, ruleset.NOT_THE_INTERNET)
    if not str(network).startswith(("0.", "127.", "224.", "240."))
]
CARRIER = "100.64.0.9"
DEPLOYED = {
    "egress_allow": f"{PRIVATE}:{PORT}, 100.64.0.0/24",
    "egress_deny": FURTHER[2],
    "max_flows": 200,
    "flows_per_s": 30,
}


@pytest.fixture(scope="module")
def daemon(client):
    daemon = Dockerd("--dns", NAME_SERVER)
    try:
        daemon.load(client)
        yield daemon
    finally:
        daemon.close()


@pytest.fixture(scope="module")
def beyond(daemon, tmp_path_factory):
    with planet.around(daemon, tmp_path_factory.mktemp("planet"), CARRIER, *DENIED) as machine:
        yield machine


@pytest.fixture(scope="module")
def backend(daemon, beyond):
    with dock.deployed(daemon.client, url=daemon.url, **DEPLOYED) as backend:
        yield backend


def started(backend, daemon, product, egress):
    wanted = replace(spec(), product=product, egress=egress)
    backend.create(wanted)
    backend.start(wanted.ref)
    container = dock.container_of(daemon.client, backend, wanted.ref)
    until(lambda: reached(container, (address_of(container)[0], 8000)))
    return container


def resolved(container, name):
    return dock.run_inside(container, planet.RESOLVE.format(name=name)).strip()


def test_engine_reaches_the_internet_and_name_servers_and_nothing_that_is_not_the_internet(backend, beyond, daemon):
    beyond.say({"api.example.com": ([HOME], 60)})
    ways = {(address, PORT) for address in [*DENIED, CARRIER, PRIVATE, HOME, *FURTHER]}
    ways |= {(PRIVATE, CLOSED_PORT), (NAME_SERVER, PORT), (NAME_SERVER, 53)}
    with unguarded(daemon.client, backend) as control:
        assert reached(control, *ways) == ways
    engine = started(backend, daemon, "open", "internet")
    allowed = {(HOME, PORT), (FURTHER[0], PORT), (FURTHER[1], PORT), (PRIVATE, PORT), (CARRIER, PORT), (NAME_SERVER, 53)}
    assert reached(engine, *ways) == allowed
    assert resolved(engine, "api.example.com") == HOME
    interfaces = dock.run_inside(engine, "print(open('/proc/net/if_inet6').read())")
    assert set(interfaces.split()[5::6]) <= {"lo"}, "an engine has no IPv6"


def test_engine_reaches_what_its_products_list_says_and_loses_it_within_seconds(backend, beyond, daemon):
    beyond.say({"api.example.com": ([FURTHER[1]], 2), "inner.example.com": ([DENIED[0], "10.77.0.2"], 2)})
    listed = ["API.example.com:8765", "inner.example.com:1-65535", "10.0.0.0/8:1-65535"]
    listed += [f"{FURTHER[0]}/32:{PORT}", f"{FURTHER[0]}:9000/udp"]
    mine, closed = started(backend, daemon, "acme", listed), started(backend, daemon, "shut", "none")
    ways = {(address, port) for address in [HOME, *FURTHER, DENIED[0], PRIVATE] for port in (PORT, CLOSED_PORT)}
    always = {(FURTHER[0], PORT), (PRIVATE, PORT)}  # the operator's exceptions make denied ranges possible, not allowed
    until(lambda: reached(mine, *ways) == {(FURTHER[1], PORT), *always})
    assert resolved(mine, "api.example.com") == FURTHER[1]
    assert reached(closed, *ways, (NAME_SERVER, 53)) == set()
    assert resolved(closed, "api.example.com") == "unknown"
    beyond.say({"api.example.com": ([HOME], 2)})
    until(lambda: reached(mine, *ways) == {(HOME, PORT), (FURTHER[1], PORT), *always})

    # Connections of a destination that is not in the list any more end within 10 s, on either way.
    held = planet.HOLD.format(address=FURTHER[0], port=PORT, echo=ECHO_PORT)
    mine.exec_run(["python3", "-c", held], detach=True)
    until(lambda: said(mine)[0] and said(mine)[1] > 5)
    tightened = time.monotonic()
    now = {"acme": ["api.example.com:8765"], "shut": "none", "open": "internet"}
    assert backend.confine(lambda slugs: {slug: now[slug] for slug in slugs})
    assert not backend.confine(lambda slugs: {slug: now[slug] for slug in slugs})
    until(lambda: not said(mine)[0])
    assert time.monotonic() - tightened < 10
    got = said(mine)[1]
    time.sleep(1)
    assert said(mine) == (False, got), "neither a stream's echo nor a datagram comes any more"

    until(lambda: reached(mine, *ways) == {(HOME, PORT)}, 45, "the address that the name has left is closed")

    assert_guard_is_told_again(backend, daemon, mine, closed, now)


def assert_guard_is_told_again(backend, daemon, mine, closed, now):
    """A guard that was started again knows no product: every network is closed, until the guard is told of all products."""
    daemon.client.containers.get(backend._guard.name).restart(timeout=1)
    until(lambda: not reached(mine, (HOME, PORT)))
    assert backend.confine(lambda slugs: {slug: now[slug] for slug in slugs})
    until(lambda: reached(mine, (HOME, PORT)) == {(HOME, PORT)})

    # So it is after somebody changed the rules.
    guard = daemon.client.containers.get(backend._guard.name)
    until(lambda: guard.exec_run(["nft", f"flush map inet {backend._guard.table} egress"]).exit_code == 0)
    until(lambda: reached(mine, (HOME, PORT)) == {(HOME, PORT)})
    now["shut"] = "internet"
    assert backend.confine(lambda slugs: {slug: now[slug] for slug in slugs})
    assert reached(closed, (HOME, PORT)) == {(HOME, PORT)}


def said(container):
    """Whether the stream's echo comes back, and how many datagrams have come."""
    found = container.exec_run(["cat", "/tmp/said"])
    echo, got = found.output.decode().split() if found.exit_code == 0 else ("0", "0")
    return echo == "1", int(got)


def test_port_on_loopback_is_reached_by_no_neighbour_with_a_route(backend, beyond, daemon):
    wanted = replace(spec(), product="open", egress="internet")
    backend.create(wanted)
    backend.start(wanted.ref)
    engine = dock.container_of(daemon.client, backend, wanted.ref)
    address, _ = address_of(engine)
    until(lambda: reached(engine, (address, 8000)))
    for switch in ("all", "eth0"):
        beyond.run("sysctl", "-q", f"net.ipv4.conf.{switch}.route_localnet=1")
    beyond.run("ip", "route", "replace", "127.0.0.1/32", "via", HOST, "dev", "eth0", "src", HOME)
    daemon.run("python3", "-c", f"import socket; socket.create_connection(('127.0.0.1', {wanted.port}), 2)")
    ways = [(address, 8000), ("127.0.0.1", wanted.port)]
    assert [beyond.reaches(*way) for way in ways] == [False, False]
    with dock.deployed(daemon.client, url=daemon.url, bind="0.0.0.0") as everywhere:
        published = replace(spec(), product="open", egress="none")
        everywhere.create(published)
        everywhere.start(published.ref)
        inner, _ = address_of(dock.container_of(daemon.client, everywhere, published.ref))
        until(lambda: beyond.reaches(HOST, published.port))
        assert not beyond.reaches(inner, 8000)
        # The rule is the guard's work: Docker before 28 lets a neighbour in.
        if daemon.client.version()["ApiVersion"] == "1.41":
            guard = daemon.client.containers.get(everywhere._guard.name)
            guard.exec_run(["sh", "-c", 'kill -STOP $(cat /proc/1/task/1/children); nft delete table inet "$TABLE"'])
            assert beyond.reaches(inner, 8000)


def test_engine_takes_few_of_the_hosts_connections(backend, beyond, daemon):
    def tracked():
        return int(daemon.ask("cat", "/proc/sys/net/netfilter/nf_conntrack_count"))

    engine = started(backend, daemon, "open", "internet")
    before = tracked()
    dock.run_inside(engine, planet.FLOOD.format(address=HOME))
    assert 100 < tracked() - before <= DEPLOYED["max_flows"] + 20
    second = started(backend, daemon, "open", "internet")  # has a bound of its own
    kept = int(dock.run_inside(second, planet.OPEN_AND_KEEP.format(address=HOME, port=PORT)))
    assert 0.9 * DEPLOYED["max_flows"] <= kept <= DEPLOYED["max_flows"]
    third = started(backend, daemon, "open", "internet")
    opened = int(dock.run_inside(third, planet.OPEN_AND_CLOSE.format(address=HOME, port=PORT)))
    burst = DEPLOYED["flows_per_s"] * ruleset.BURST_S
    assert burst <= opened <= burst + 5 * DEPLOYED["flows_per_s"]
