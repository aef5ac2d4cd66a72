"""Which name servers an engine on Docker asks: its host's, without Docker's own where that is slow."""

import pytest

from engines.backends.docker import name_servers
from tests.engines.backends import dock
from tests.engines.backends.dockerd import Dockerd
from tests.engines.backends.runtimes import spec

DOCKERS_OWN = "127.0.0.11"
OPEN_UDP = "import pathlib; print(pathlib.Path('/proc/net/udp').read_text())"
LOOK = "import pathlib; print(pathlib.Path('/etc/resolv.conf').read_text())"
OWN_IN_HEX = "0B00007F:"  # as /proc/net/udp has 127.0.0.11


def started(client, backend):
    wanted = spec()
    backend.create(wanted)
    backend.start(wanted.ref)
    return dock.container_of(client, backend, wanted.ref)


def servers(resolv_conf):
    return [words[1] for words in map(str.split, resolv_conf.splitlines()) if words[:1] == ["nameserver"]]


def is_slow(client):
    return client.version()["ApiVersion"] == name_servers.SLOW


@pytest.mark.parametrize("reach", ["port", "container"])
def test_engine_asks_its_hosts_name_servers_where_dockers_own_is_slow(client, reach):
    with dock.deployed(client, reach=reach) as backend:
        container = started(client, backend)
        asked = servers(dock.run_inside(container, LOOK))
        listens = OWN_IN_HEX in dock.run_inside(container, OPEN_UDP)
        with backend._daemon.verb("test"):
            hosts = backend._guard.resolv_conf()
        if is_slow(client) and name_servers.choose(hosts):
            assert asked == servers(hosts)
            assert not listens
        else:
            assert asked == [DOCKERS_OWN]


def test_engine_keeps_dockers_name_server_where_the_hosts_is_reachable_from_the_host_alone(client):
    daemon = Dockerd("--dns", "127.0.0.1")
    try:
        daemon.load(client)
        with dock.deployed(daemon.client, url=daemon.url) as backend:
            container = started(daemon.client, backend)
            assert servers(dock.run_inside(container, LOOK)) == [DOCKERS_OWN]
            assert OWN_IN_HEX in dock.run_inside(container, OPEN_UDP)
    finally:
        daemon.close()


@pytest.mark.parametrize(
    ("resolv_conf", "options"),
    [
        ("nameserver 192.0.2.1\n", [name_servers.NONE]),
        ("search example\nnameserver 192.0.2.1\nnameserver fe80::1%eth0\noptions a\noptions timeout:1 ndots:2\n",
         [name_servers.NONE, "timeout:1", "ndots:2"]),
        ("nameserver 192.0.2.1\nnameserver 127.0.0.53\n", []),
        ("nameserver ::1\n", []),
        ("nameserver nonsense\n", []),
        ("# nameserver 192.0.2.1\nnameserver\n", []),
        ("", []),
    ],
)  # fmt: skip
def test_hosts_name_servers_are_asked_when_others_reach_them(resolv_conf, options):
    assert name_servers.choose(resolv_conf) == options
