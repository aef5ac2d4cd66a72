"""What an engine can reach, tried from inside one; each way in is first shown to be open to a container that nobody guards."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from common.env import Env
from engines.backends.base import BackendUnavailable, NetworkUnguarded, State
from engines.backends.docker import Options, control_plane
from engines.backends.docker.containers import DEPLOYMENT
from tests.engines.backends import dock
from tests.engines.backends.inside import GATEWAY, METADATA, WORLD, WORLD_PORT, address_of, reached, unguarded
from tests.engines.backends.runtimes import IMAGE, is_healthy, spec
from tests.waiting import until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes network interfaces")


def started(backend, product="acme", **changed):
    wanted = replace(spec(), product=product, **changed)
    backend.create(wanted)
    backend.start(wanted.ref)
    until(lambda: is_healthy(wanted.port))
    return wanted


@pytest.mark.parametrize("egress", ["internet", "none"])
def test_engine_reaches_no_engine_no_host_and_no_metadata(client, world, egress):
    with dock.deployed(client, bind="0.0.0.0") as backend, dock.listening(0, "0.0.0.0") as control_plane:
        mine, sibling, stranger = (started(backend, product, egress=egress) for product in ("acme", "acme", "other"))
        engine = dock.container_of(client, backend, mine.ref)
        own, gateway = address_of(engine)
        engines = [address_of(dock.container_of(client, backend, each.ref))[0] for each in (sibling, stranger)]
        hosts = [gateway, GATEWAY, "172.17.0.1"]
        published = [(host, each.port) for host in hosts for each in (mine, sibling, stranger)]
        ours = [(host, control_plane) for host in hosts]
        with unguarded(client, backend) as control:
            ways = {*published, *ours, (METADATA, WORLD_PORT), (WORLD, WORLD_PORT)}
            assert reached(control, *ways) == ways
        targets = [*published, *ours, *((address, 8000) for address in engines), (METADATA, WORLD_PORT), (WORLD, WORLD_PORT)]
        allowed = {(own, 8000), *([(WORLD, WORLD_PORT)] if egress == "internet" else [])}
        assert reached(engine, (own, 8000), *targets) == allowed
        assert is_healthy(mine.port)


@pytest.mark.parametrize("reach", ["port", "container"])
def test_engine_reaches_no_server_of_ours_on_another_machine(client, world, reach):
    """Not the database, the broker or a daemon, where they are not on the engines' host."""
    with dock.deployed(client, reach=reach) as backend:
        wanted = spec()
        backend.create(wanted)
        backend.start(wanted.ref)
        until(lambda: reached(dock.container_of(client, backend, wanted.ref), (WORLD, WORLD_PORT)))
        ours = control_plane.hosts(f"postgresql://app:x@{WORLD}:5432/roundhouse", "redis://127.0.0.1:6379/0")
        careful = type(backend)(replace(backend.options, control_plane=ours))
        second = spec()
        careful.create(second)
        careful.start(second.ref)  # puts a guard with these rules in the other's place
        for each in (wanted, second):
            engine = dock.container_of(client, careful, each.ref)
            until(lambda engine=engine: reached(engine, (address_of(engine)[0], 8000)))
            assert reached(engine, (WORLD, WORLD_PORT)) == set()


def test_workers_that_know_different_addresses_of_our_servers_agree_on_a_guard(client):
    def denied(backend):
        return client.containers.get(backend._guard.name).labels["roundhouse.denied"].split()

    with dock.deployed(client, control_plane=("192.0.2.1",)) as first:
        second = type(first)(replace(first.options, control_plane=("192.0.2.2",)))
        started(first)
        assert denied(first) == ["192.0.2.1"]
        started(second)
        assert denied(first) == ["192.0.2.1", "192.0.2.2"]
        guard = client.containers.get(first._guard.name).id
        for backend in (first, second):
            started(backend)
        assert client.containers.get(first._guard.name).id == guard


def test_hosts_of_our_servers_are_those_of_the_settings():
    env = Env(
        database_url="postgresql://app:x@db.example.com:5432,db2.example.com/roundhouse",
        database_owner_url="postgresql://owner:x@db.example.com/roundhouse?hostaddr=192.0.2.7",
        redis_url="rediss://:x@valkey.example.com:6379/0",
        docker_url="tcp://192.0.2.9:2376",
    )
    named = ("192.0.2.7", "192.0.2.9", "db.example.com", "db2.example.com", "valkey.example.com")
    assert Options.read(env).control_plane == named
    sockets = ("unix:///var/run/docker.sock", "unix:///run/valkey.sock?db=0", "postgresql:///roundhouse?host=/run/postgresql", "")
    assert control_plane.hosts(*sockets) == ()


def test_addresses_of_our_servers_leave_out_loopback_and_names_that_nobody_has():
    addresses = control_plane.Addresses(("localhost", "127.0.0.1", "192.0.2.1", "no-such-host.invalid"))
    assert addresses.now() == {"192.0.2.1"}


def test_engine_reaches_a_neighbour_only_without_the_guard(client):
    """What the test above proves is the guard's and Docker's work, and not that engines cannot be reached at all."""
    with dock.deployed(client) as backend:
        mine = started(backend)
        address, _ = address_of(dock.container_of(client, backend, mine.ref))
        network = dock.container_of(client, backend, mine.ref).attrs["HostConfig"]["NetworkMode"]
        plain = client.networks.create(f"{network}-plain", labels={DEPLOYMENT: backend.options.deployment})
        plain.connect(dock.container_of(client, backend, mine.ref))
        labels = {DEPLOYMENT: backend.options.deployment}
        neighbour = client.containers.run(IMAGE, ["sleep", "600"], labels=labels, network=plain.name, detach=True)
        plain.reload()
        inner = next(each["IPv4Address"] for each in plain.attrs["Containers"].values() if each["Name"] != neighbour.name)
        assert reached(neighbour, (inner.partition("/")[0], 8000), (address, 8000)) == {(inner.partition("/")[0], 8000)}


def test_guard_puts_rules_back_that_somebody_changed(client):
    with dock.deployed(client) as backend, dock.listening(0, "0.0.0.0") as port:
        mine = started(backend)
        engine = dock.container_of(client, backend, mine.ref)
        _, gateway = address_of(engine)
        table = backend._guard.table
        guard = client.containers.get(backend._guard.name)
        for order in (f"delete table inet {table}", f"flush chain inet {table} input"):
            harm = ["nft", order]
            until(lambda harm=harm: guard.exec_run(harm).exit_code == 0 and reached(engine, (gateway, port)), 30)
            until(lambda: not reached(engine, (gateway, port)))


def test_guard_is_hardened_and_comes_back_by_itself(client):
    with dock.deployed(client) as backend:
        started(backend)
        host = client.containers.get(backend._guard.name).attrs["HostConfig"]
        assert (host["CapDrop"], host["CapAdd"], host["Privileged"]) == (["ALL"], ["NET_ADMIN", "NET_RAW"], False)
        assert (host["NetworkMode"], host["RestartPolicy"]["Name"], host["ReadonlyRootfs"]) == ("host", "always", True)
        assert not host["Binds"]


def test_stand_down_leaves_no_guard_and_no_rules_and_the_next_start_brings_both_back(client):
    def tables():
        told = client.containers.run(
            Options.guard_image, ["nft", "list", "tables"], network_mode="host", cap_add=["NET_ADMIN"], remove=True
        )
        return [line.split()[1] for line in told.decode().splitlines() if line.endswith(backend._guard.table)]

    with dock.deployed(client) as backend:
        backend.remove(started(backend).ref.engine_id)
        assert sorted(tables()) == ["bridge", "inet"]
        backend.stand_down()
        assert tables() == []
        assert backend._guard.name not in [container.name for container in client.containers.list(all=True, ignore_removed=True)]
        started(backend)
        assert sorted(tables()) == ["bridge", "inet"]


def test_start_puts_a_missing_or_stopped_guard_back_first(client):
    with dock.deployed(client) as backend:
        wanted = started(backend)
        guard = client.containers.get(backend._guard.name)
        for harm in (guard.stop, lambda: guard.remove(force=True)):
            backend.stop(wanted.ref, grace_s=0)
            harm()
            backend.start(wanted.ref)
            assert client.containers.get(backend._guard.name).status == "running"


def test_start_replaces_a_guard_with_other_rules(client):
    with dock.deployed(client) as backend:
        started(backend)
        before = client.containers.get(backend._guard.name)
        changed = type(backend)(replace(backend.options, egress_deny="192.31.196.0/24, 44.0.0.0/9"))
        started(changed)
        after = client.containers.get(backend._guard.name)
        assert before.id != after.id
        assert b"44.0.0.0/9" in after.exec_run(["nft", "list", "table", "inet", backend._guard.table]).output


def test_start_may_be_tried_again_while_others_keep_replacing_the_guard(client):
    """As in a rolling restart: a worker with other settings removes it before it has put the rules in force."""
    with dock.deployed(client, timeout_s=60) as backend:
        wanted, began, done = spec(), threading.Event(), threading.Event()
        backend.create(wanted)
        other = type(backend)(replace(backend.options, egress_deny="44.0.0.0/9"))

        def replace_guard():
            with other._daemon.verb("test"):
                while not done.is_set():
                    other._guard._state()
                    began.set()

        with ThreadPoolExecutor(1) as pool:
            replacing = pool.submit(replace_guard)
            try:
                assert began.wait(10)
                with pytest.raises(BackendUnavailable, match="keep replacing"):
                    backend.start(wanted.ref)
            finally:
                done.set()
            replacing.result()
        backend.start(wanted.ref)
        until(lambda: is_healthy(wanted.port))


@pytest.mark.parametrize("trouble", ["image is missing", "rules are refused"])
def test_start_fails_closed_without_a_guard(client, trouble):
    chosen = {"guard_image": "no-such-guard:1"} if trouble == "image is missing" else {"flows_per_s": 0}
    with dock.deployed(client, **chosen) as backend:
        wanted = spec()
        backend.create(wanted)
        with pytest.raises(NetworkUnguarded) as raised:
            backend.start(wanted.ref)
        assert ("make engine-image" in str(raised.value)) is (trouble == "image is missing")
        assert backend.observe(wanted.ref) is State.CREATED
