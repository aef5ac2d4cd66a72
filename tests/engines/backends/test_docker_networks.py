"""Networks of the Docker backend: one per product, a further one before it is full, and none left behind."""

import ipaddress
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from common.env import Env
from engines.backends.base import NetworkFull, State
from engines.backends.docker import DockerBackend, Options, networks
from engines.backends.docker.containers import DEPLOYMENT
from tests.engines.backends import dock
from tests.engines.backends.runtimes import spec


@pytest.fixture
def small(client):
    """A backend whose networks take two engines each."""
    with dock.deployed(client, network_size=2) as backend:
        yield backend


def started(backend, product="acme"):
    wanted = replace(spec(), product=product)
    backend.create(wanted)
    backend.start(wanted.ref)
    return wanted


def network_of(client, backend, wanted):
    """Where the instance really is, and not only meant to be."""
    (name,) = dock.container_of(client, backend, wanted.ref).attrs["NetworkSettings"]["Networks"]
    return name


def test_create_attaches_engine_to_network_of_its_product(client, docked):
    first, second, other = started(docked), started(docked), started(docked, "other")
    prefix = docked.options.network
    assert [network_of(client, docked, each) for each in (first, second, other)] == [
        f"{prefix}-acme",
        f"{prefix}-acme",
        f"{prefix}-other",
    ]
    network = client.networks.get(f"{prefix}-acme")
    assert network.attrs["Options"][networks.ICC] == "false"
    assert network.attrs["Options"][networks.BRIDGE_NAME].startswith("rh-")
    assert network.attrs["Labels"] == {DEPLOYMENT: docked.options.deployment, "roundhouse.product": "acme"}
    assert not network.attrs["EnableIPv6"]


def test_create_shards_before_a_network_is_full_counting_engines_that_do_not_run(client, small):
    prefix = small.options.network
    specs = []
    for _ in range(5):
        specs.append(spec())
        small.create(specs[-1])
    small.start(specs[4].ref)
    found = [network_of(client, small, each) for each in specs]
    assert found == [f"{prefix}-acme"] * 2 + [f"{prefix}-acme.2"] * 2 + [f"{prefix}-acme.3"]
    small.remove(specs[0].ref.engine_id)
    small._networks.forget("acme")  # as a worker that comes up later
    small.create(specs[0])
    assert network_of(client, small, specs[0]) == f"{prefix}-acme"


def test_creators_at_once_overfill_no_network_by_more_than_there_are_of_them(client):
    """Each from a process of its own, as far as the backend can tell: what one has counted, another fills."""
    with dock.deployed(client, network_size=6) as first:
        creators = [DockerBackend(first.options) for _ in range(3)]
        for _ in range(6):
            with ThreadPoolExecutor(len(creators)) as pool:
                list(pool.map(lambda creator: creator.create(spec()), creators))
        labels = {"label": f"{DEPLOYMENT}={first.options.deployment}"}
        sizes = [
            len(client.api.containers(all=True, filters={"network": [network.name]}))
            for network in client.networks.list(filters=labels)
        ]
        assert sum(sizes) == 18
        assert max(sizes) <= 6 + len(creators) - 1


def test_place_remembers_a_little_of_an_empty_network_and_counts_a_fuller_one(client):
    with dock.deployed(client, network_size=64) as backend:
        remembered = []
        for _ in range(36):
            backend.create(spec())
            remembered.append(backend._networks._room["acme"].left)
        assert max(remembered) == 64 // networks.REMEMBERED
        assert remembered[33:] == [0, 0, 0]  # from half of it on


def test_create_goes_by_no_count_of_before_others_filled_the_network(client):
    with dock.deployed(client, network_size=64) as idle:
        busy = DockerBackend(idle.options)
        idle.create(spec())
        assert idle._networks._room["acme"].left > 0
        for _ in range(63):
            busy.create(spec())
        time.sleep(networks.REMEMBERED_S)
        last = spec()
        idle.create(last)
        assert network_of(client, idle, last) == f"{idle.options.network}-acme.2"


def test_create_shards_when_a_small_network_has_no_address_left(client):
    with dock.deployed(client) as backend:
        dock.make_network(client, backend, f"{backend.options.network}-acme")
        specs = [started(backend) for _ in range(6)]
        found = [network_of(client, backend, each) for each in specs]
        assert found == [f"{backend.options.network}-acme"] * 5 + [f"{backend.options.network}-acme.2"]
        assert all(backend.observe(each.ref) is State.RUNNING for each in specs)


def test_start_moves_engine_when_strangers_took_the_addresses(client):
    with dock.deployed(client) as backend:
        network = dock.make_network(client, backend, f"{backend.options.network}-acme")
        wanted = spec()
        backend.create(wanted)
        strangers = [dock.stranger(client, backend, network.name) for _ in range(5)]
        backend.start(wanted.ref)
        assert network_of(client, backend, wanted) == f"{backend.options.network}-acme.2"
        assert backend.observe(wanted.ref) is State.RUNNING
        backend.stop(wanted.ref, grace_s=0)
        backend.start(wanted.ref)
        assert len(strangers) == 5


@pytest.mark.daemon
def test_create_raises_network_full_and_leaks_nothing_when_there_is_no_further_network(client, no_pool_left):
    with dock.deployed(client) as backend:
        dock.make_network(client, backend, f"{backend.options.network}-acme", dock.ONE_ADDRESS)
        first, second = started(backend), spec()
        with pytest.raises(NetworkFull) as raised:
            backend.create(second)
        assert raised.value.code == "network_full"
        assert [found.ref for found in backend.list()] == [first.ref]
        assert not dock.has_volume(client, second.ref.engine_id)
        backend.remove(first.ref.engine_id)
        backend.create(second)


def test_create_passes_over_a_network_that_was_not_made_for_engines(client):
    with dock.deployed(client) as backend:
        name = f"{backend.options.network}-acme"
        dock.make_network(client, backend, name, options={})
        assert network_of(client, backend, started(backend)) == f"{name}.2"


def test_start_makes_the_network_again_when_it_was_removed(client, docked):
    wanted = started(docked, "gone")
    docked.stop(wanted.ref, grace_s=0)
    network = client.networks.get(f"{docked.options.network}-gone")
    network.remove()
    docked.start(wanted.ref)
    assert docked.observe(wanted.ref) is State.RUNNING
    assert network_of(client, docked, wanted) == network.name


def test_create_makes_the_network_again_when_it_was_removed(client, docked):
    first = started(docked, "gone")
    docked.remove(first.ref.engine_id)
    client.networks.get(f"{docked.options.network}-gone").remove()
    assert docked.observe(started(docked, "gone").ref) is State.RUNNING


def test_tidy_removes_networks_without_engines_only(client, docked):
    kept, gone = started(docked, "kept"), started(docked, "gone")
    docked.stop(kept.ref, grace_s=0)
    docked.remove(gone.ref.engine_id)
    docked.tidy()
    names = {network.name for network in client.networks.list(filters={"label": f"{DEPLOYMENT}={docked.options.deployment}"})}
    assert names == {f"{docked.options.network}-kept"}
    assert docked.tidy() == 0
    docked.start(kept.ref)


@pytest.mark.parametrize(("size", "boots"), [(900, 16), (884, 16), (850, 50)])
def test_settings_keep_a_network_below_900_with_all_that_may_come_on_top(size, boots):
    with pytest.raises(ValueError, match="below 900 together"):
        Env(engine_network_size=size, max_boots=boots)


def test_default_settings_keep_a_network_below_900():
    env = Env()
    assert env.engine_network_size + env.max_boots < 900
    assert Options.read(env).network_size == env.engine_network_size


def test_addresses_leave_out_network_gateway_and_broadcast():
    assert (
        networks._addresses({"IPAM": {"Config": [{"Subnet": dock.SMALL}]}}) == ipaddress.ip_network(dock.SMALL).num_addresses - 3
    )
    assert networks._addresses({"IPAM": {"Config": None}}) == 0
