"""Engines reached by name: who calls them is on their network, and they can call nobody there."""

import os
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from uuid import uuid4

import pytest

from engines.backends.base import InstanceDiffers, InstanceMissing, NetworkUnguarded, Ref, State, instance_name
from engines.backends.docker import DockerBackend, Options, networks
from engines.backends.docker.containers import CLIENT, DEPLOYMENT, ENGINE, PRODUCTS, Found, mac_address, open_port
from tests.engines.backends import dock, inside
from tests.engines.backends.dockerd import Dockerd
from tests.engines.backends.inside import METADATA, WORLD, WORLD_PORT, address_of, reached
from tests.engines.backends.runtimes import IMAGE, spec
from tests.waiting import until

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="makes network interfaces")
SERVE = ["python3", "-m", "http.server", "8000", "--directory", "/tmp"]


@pytest.fixture
def named(client):
    """A backend whose engines are reached by name."""
    with dock.deployed(client, reach="container") as backend:
        yield backend


def started(backend, product="acme", egress="internet", **details):
    wanted = replace(spec(**details), product=product, egress=egress)
    backend.create(wanted)
    backend.start(wanted.ref)
    return wanted


@contextmanager
def calling(client, backend, products):
    """A container that calls engines of these products, and listens itself on 8000."""
    labels = {CLIENT: backend.options.deployment, PRODUCTS: products}
    container = client.containers.run(IMAGE, SERVE, labels=labels, detach=True)
    try:
        yield container
    finally:
        container.remove(force=True)


def name_of(backend, wanted):
    return instance_name(backend.options.deployment, wanted.ref.engine_id), 8000


def networks_of(container):
    container.reload()
    return set(container.attrs["NetworkSettings"]["Networks"])


def addresses_of(container):
    container.reload()
    return [network["IPAddress"] for network in container.attrs["NetworkSettings"]["Networks"].values()]


def bridge_of(backend, network):
    with backend._daemon.verb("test"):
        return backend._networks.bridge_of(network)


def end_guard(client, backend):
    """Take the guard and its rules away."""
    guard = client.containers.get(backend._guard.name)
    guard.exec_run(["sh", "-c", 'kill -STOP $(cat /proc/1/task/1/children); nft delete table bridge "$TABLE"'])
    guard.exec_run(["nft", "delete", "table", "inet", backend._guard.table])
    guard.remove(force=True)


# -- who reaches whom --------------------------------------------------------------------------------------------------


@as_root
@pytest.mark.parametrize("egress", ["internet", "none"])
def test_engine_reaches_no_engine_and_no_client_while_clients_reach_it(client, world, egress):
    with (
        dock.deployed(client, reach="container") as backend,
        calling(client, backend, "acme") as app,
        calling(client, backend, "*") as worker,
        dock.listening(0, "0.0.0.0") as control_plane,
    ):
        mine, sibling, stranger = (started(backend, product, egress) for product in ("acme", "acme", "other"))
        names = [name_of(backend, each) for each in (mine, sibling, stranger)]
        until(lambda: reached(worker, *names) == set(names))
        assert reached(app, *names) == set(names[:2])
        engine = dock.container_of(client, backend, mine.ref)
        own, gateway = address_of(engine)
        neighbours = [address_of(dock.container_of(client, backend, each.ref))[0] for each in (sibling, stranger)]
        theirs = [(address, 8000) for address in [*neighbours, *addresses_of(app), *addresses_of(worker)]]
        outside = [(gateway, control_plane), ("172.17.0.1", control_plane), (METADATA, WORLD_PORT), (WORLD, WORLD_PORT)]
        allowed = {(own, 8000), *([(WORLD, WORLD_PORT)] if egress == "internet" else [])}
        assert reached(engine, (own, 8000), *names[1:], *theirs, *outside) == allowed


def test_engine_reaches_neighbour_and_client_only_without_the_guard(client, named):
    """What the test above proves is the guard's work: Docker lets them through."""
    with calling(client, named, "acme") as app:
        mine, sibling = started(named), started(named)
        engine = dock.container_of(client, named, mine.ref)
        network = f"{named.options.network}-acme"
        app.reload()
        theirs = (app.attrs["NetworkSettings"]["Networks"][network]["IPAddress"], 8000)
        neighbour = (address_of(dock.container_of(client, named, sibling.ref))[0], 8000)
        until(lambda: reached(app, name_of(named, sibling)))
        assert reached(engine, theirs, neighbour) == set()
        end_guard(client, named)
        assert reached(engine, theirs, neighbour) == {theirs, neighbour}


def test_list_names_the_port_of_an_engine_only_while_it_is_on_its_network(client, named):
    mine = started(named)
    assert named.list(mine.ref.engine_id)[0].serves(mine.ref, mine.port)
    (network,) = networks_of(container := dock.container_of(client, named, mine.ref))
    client.networks.get(network).disconnect(container, force=True)
    (found,) = named.list()
    assert (found.state, found.port) == (State.RUNNING, None)


@pytest.mark.parametrize(
    ("bind", "published", "is_reached"),
    [
        ("127.0.0.1", [("127.0.0.1", 9001)], True),
        ("127.0.0.1", [("0.0.0.0", 9001), ("::", 9001)], True),
        ("0.0.0.0", [("127.0.0.1", 9001)], True),
        ("0:0:0:0:0:0:0:1", [("::1", 9001)], True),
        ("127.0.0.1", [("10.1.2.3", 9001)], False),
        ("127.0.0.1", [("127.0.0.1", 9002)], False),
        ("0.0.0.0", [], False),
    ],
)
def test_port_is_named_only_where_callers_reach_it(bind, published, is_reached):
    ref = Ref(uuid4(), 1)
    details = {"reach": "port", "disk_mb": 0, "leaving": False, "is_attached": True, "published": frozenset(published)}
    found = Found("id", "name", ref, "acme", "image", 9001, State.RUNNING, "network", made_of={}, **details)
    assert open_port(found, Options(bind=bind)) == (9001 if is_reached else None)


def test_client_reaches_an_engine_at_once_that_has_the_ip_address_of_another_one(client, named):
    """The client has the other one's MAC address in its cache, where it would stay for most of a minute."""
    with calling(client, named, "acme") as app:
        before = started(named)
        address = address_of(dock.container_of(client, named, before.ref))
        until(lambda: reached(app, name_of(named, before)))
        named.stop(before.ref, grace_s=0)
        after = started(named)
        assert address_of(dock.container_of(client, named, after.ref)) == address
        until(lambda: reached(app, name_of(named, after)), 5)


def test_engine_sends_no_datagram_to_a_client_or_another_engine(client, named):
    with calling(client, named, "acme") as app, calling(client, named, "acme") as friend:
        mine, sibling = started(named), started(named)
        engine, other = (dock.container_of(client, named, each.ref) for each in (mine, sibling))
        heard = {}
        ears = [threading.Thread(target=lambda each=each: heard.update({each.id: dock.run_inside(each, inside.HEARD)}))
                for each in (friend, other)]  # fmt: skip
        for ear in ears:
            ear.start()
        time.sleep(1)
        friend.reload()
        network = friend.attrs["NetworkSettings"]["Networks"][f"{named.options.network}-acme"]
        for address in (network["IPAddress"], address_of(other)[0]):
            inside.say(engine, address, "engine")
        inside.say(app, address_of(other)[0], "client")
        for ear in ears:
            ear.join()
        assert heard == {friend.id: "nothing more\n", other.id: "client\nnothing more\n"}


@pytest.fixture(scope="module")
def daemon(client):
    """Its namespace has the switch for bridged packets for itself."""
    daemon = Dockerd()
    try:
        daemon.load(client)
        yield daemon
    finally:
        daemon.close()


@as_root
@pytest.mark.parametrize("reach", ["port", "container"])
@pytest.mark.parametrize("bridged", ["0", "1"])
def test_engines_are_kept_apart_whether_or_not_bridged_packets_pass_the_host(daemon, reach, bridged):
    """What comes last proves that it was the guard's work, but for what Docker itself does where its own rules are asked."""
    with (
        dock.deployed(daemon.client, url=daemon.url, reach=reach) as backend,
        calling(daemon.client, backend, "acme") as app,
    ):
        mine, sibling = started(backend), started(backend)
        daemon.set("net.bridge.bridge-nf-call-iptables", bridged)
        engine, other = (dock.container_of(daemon.client, backend, each.ref) for each in (mine, sibling))
        own, neighbour = ((address_of(each)[0], 8000) for each in (engine, other))
        until(lambda: reached(engine, own) and reached(other, neighbour))
        if reach == "container":
            names = [name_of(backend, each) for each in (mine, sibling)]
            until(lambda: reached(app, *names) == set(names))
        theirs = [neighbour, *((address, 8000) for address in addresses_of(app))]
        until(lambda: reached(engine, own, *theirs) == {own}, 5)
        end_guard(daemon.client, backend)
        (network,) = networks_of(engine)
        daemon.run("ip", "link", "set", bridge_of(backend, network), "type", "bridge", "nf_call_iptables", "0")
        is_dockers_work = (reach, bridged) == ("port", "1")
        assert (neighbour in reached(engine, neighbour)) is not is_dockers_work


@pytest.mark.parametrize("made", ["now", "before engines had labels against it"])
def test_engine_whose_image_says_it_is_a_client_stays_on_its_own_network(client, named, made):
    labels = {CLIENT: named.options.deployment, PRODUCTS: "*", "com.docker.compose.project": "roundhouse"}
    said = " ".join(f"{name}={value}" for name, value in labels.items())
    image = dock.build(client, f"FROM {IMAGE}\nLABEL {said}\nSTOPSIGNAL SIGKILL")
    started(named, "other")
    if made == "now":
        wanted = started(named, image=image)
        engine = dock.container_of(client, named, wanted.ref)
        assert not engine.labels.items() & labels.items()
    else:
        started(named)
        marks = {DEPLOYMENT: named.options.deployment, ENGINE: "0d5ff1a5-2a1a-4b92-8d64-3a4c7dbcbd9a"}
        engine = client.containers.run(image, SERVE, labels=marks, network=f"{named.options.network}-acme", detach=True)
    named.tidy()
    named.join()
    assert networks_of(engine) == {f"{named.options.network}-acme"}
    if made == "now":
        until(lambda: reached(engine, ("127.0.0.1", 8000)))
        named.stop(wanted.ref, grace_s=10)
        assert engine.wait()["StatusCode"] == 0, "nor does the image choose the signal that ends the engine"


# -- what is made ------------------------------------------------------------------------------------------------------


def test_create_publishes_no_port_and_gives_an_address_of_ours(client, named):
    wanted = started(named)
    container = dock.container_of(client, named, wanted.ref)
    assert not container.attrs["HostConfig"]["PortBindings"]
    (network,) = container.attrs["NetworkSettings"]["Networks"].values()
    assert network["MacAddress"] == mac_address(named.options.deployment, wanted.port)
    assert client.networks.get(f"{named.options.network}-acme").attrs["Options"][networks.ICC] == "true"


def test_instance_is_made_again_with_its_address_when_its_network_was_removed(client, named):
    wanted = started(named)
    named.stop(wanted.ref, grace_s=0)
    client.networks.get(f"{named.options.network}-acme").remove()
    with calling(client, named, "acme") as app:
        with pytest.raises(InstanceMissing):
            named.start(wanted.ref)
        assert named.observe(wanted.ref) is State.ABSENT
        named.create(wanted)
        named.start(wanted.ref)
        (network,) = dock.container_of(client, named, wanted.ref).attrs["NetworkSettings"]["Networks"].values()
        assert network["MacAddress"] == mac_address(named.options.deployment, wanted.port)
        until(lambda: reached(app, name_of(named, wanted)))


@pytest.mark.parametrize("guarded", [True, False])
def test_start_lets_no_engine_run_on_another_network_than_its_own(client, named, guarded):
    """On a guarded network the engine has another MAC address, by which the guard does not know it."""
    wanted = spec()
    named.create(wanted)
    container = dock.container_of(client, named, wanted.ref)
    name = f"{named.options.network}-other"
    chosen = networks.config(named.options, name, "acme") if guarded else {"labels": {DEPLOYMENT: named.options.deployment}}
    other = client.networks.create(name, **chosen)
    client.networks.get(f"{named.options.network}-acme").disconnect(container)
    other.connect(container)
    with pytest.raises(NetworkUnguarded):
        named.start(wanted.ref)
    assert named.observe(wanted.ref) is (State.EXITED if guarded else State.CREATED)


def test_start_on_a_full_network_is_made_up_for_on_another_one(client):
    with dock.deployed(client, reach="container", network_size=2) as backend:
        wanted = spec()
        backend.create(wanted)
        name = f"{backend.options.network}-acme"
        client.networks.get(name).remove()
        config = networks.config(backend.options, name, "acme")
        pool = {"IPAM": {"Config": [{"Subnet": dock.ONE_ADDRESS}]}}
        client.api.create_network(name, **config, ipam=pool["IPAM"])
        labels = {DEPLOYMENT: backend.options.deployment}
        client.containers.run(IMAGE, SERVE, network=name, labels=labels, detach=True)
        with pytest.raises(InstanceMissing):
            backend.start(wanted.ref)
        backend.create(wanted)
        backend.start(wanted.ref)
        assert networks_of(dock.container_of(client, backend, wanted.ref)) == {f"{name}.2"}


def test_other_reach_uses_neither_the_networks_nor_the_containers_of_the_one_before(client, named):
    running, stopped = started(named), started(named)
    named.stop(stopped.ref, grace_s=0)
    changed = DockerBackend(replace(named.options, reach="port"))
    for wanted in (running, stopped):
        with pytest.raises(InstanceDiffers, match="differs in address"):
            changed.create(wanted)
    assert networks_of(dock.container_of(client, named, running.ref)) == {f"{named.options.network}-acme"}
    changed.destroy(stopped.ref)
    changed.create(stopped)
    changed.start(stopped.ref)
    again = dock.container_of(client, named, stopped.ref)
    assert networks_of(again) == {f"{named.options.network}-acme.2"}
    assert again.attrs["HostConfig"]["PortBindings"]


# -- clients -----------------------------------------------------------------------------------------------------------


def test_join_attaches_clients_to_networks_of_their_products(client, named):
    for product in ("acme", "other", "third"):
        started(named, product)
    prefix = named.options.network
    with (
        calling(client, named, "*") as worker,
        calling(client, named, "acme, third") as app,
        calling(client, named, "") as nobody,
    ):
        assert named.join() == 5
        assert networks_of(worker) == {"bridge", f"{prefix}-acme", f"{prefix}-other", f"{prefix}-third"}
        assert networks_of(app) == {"bridge", f"{prefix}-acme", f"{prefix}-third"}
        assert networks_of(nobody) == {"bridge"}
        assert named.join() == 0
    with calling(client, named, "other") as again:
        named.tidy()
        assert networks_of(again) == {"bridge", f"{prefix}-other"}


def test_create_attaches_clients_to_a_new_network(client, named):
    with calling(client, named, "acme") as app:
        named.create(spec())
        assert networks_of(app) == {"bridge", f"{named.options.network}-acme"}


def test_tidy_detaches_clients_from_networks_without_engines(client, named):
    wanted = started(named)
    with calling(client, named, "*") as worker, calling(client, named, "acme") as stopped:
        named.join()
        stopped.stop(timeout=0)
        named.remove(wanted.ref.engine_id)
        assert named.tidy() == 1
        assert networks_of(worker) == networks_of(stopped) == {"bridge"}
        stopped.start()


def test_clients_are_attached_nowhere_where_engines_are_reached_by_ports(client, docked):
    with calling(client, docked, "*") as worker:
        started(docked)
        assert docked.join() == 0
        assert networks_of(worker) == {"bridge"}


def test_mac_addresses_differ_by_port_and_deployment():
    found = {mac_address(deployment, port) for deployment in ("one", "two") for port in (1, 255, 256, 9001, 65535)}
    assert len(found) == 10
    assert all(int(address[:2], 16) & 3 == 2 for address in found)  # locally administered, of one station
