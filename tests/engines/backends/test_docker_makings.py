"""What a container is made of, and what counts as a difference; and containers that the daemon shows to differ."""

import json
from dataclasses import replace

import pytest

from engines.backends.base import InstanceDiffers, Limits, State
from engines.backends.docker import Options, containers, makings
from tests.engines.backends import dock
from tests.engines.backends.runtimes import spec

NETWORKS = ["engine_net-acme"]
SPEC = replace(spec(), limits=Limits(memory_mb=256, cpus=0.5), digest="sha256:1")


USUAL = Options()


def differing(options=USUAL, networks=NETWORKS, image="sha256:1", **changed):
    """The parts in which a container of SPEC, made under the usual settings, differs from the changed spec under `options`."""
    made_of = makings.noted(makings.note(SPEC, USUAL), networks, image)
    return list(makings.differing(made_of, replace(SPEC, **changed), options))


@pytest.mark.parametrize(
    ("setting", "value", "parts"),
    [
        ("bind", "0.0.0.0", ["address"]),
        ("reach", "container", ["address"]),
        ("user", "10002:10002", ["user"]),
        ("catalog", "/srv/catalog", ["mounts"]),
        ("tmp_mb", 32, ["mounts"]),
        ("memory_mb", 128, ["limits"]),
        ("cpus", 0.25, ["limits"]),
        ("pids", 64, ["limits"]),
        ("write_mb_s", 10, ["limits"]),
        ("log_mb", 5, ["limits"]),
        ("runtime", "runsc", ["runtime"]),
        ("network", "other_net", ["network"]),
        # The registry says how much memory an incarnation has, and the policy how many CPUs: a higher ceiling changes neither.
        ("memory_mb", 1024, []),
        ("cpus", 2.0, []),
        # The limit on files follows at each start without this, and a quota belongs to the volume.
        ("disk_mb", 2048, []),
        ("disk_quota", True, []),
    ],
)
def test_changed_setting_makes_a_difference_by_name(setting, value, parts):
    assert differing(replace(Options(), **{setting: value})) == parts


@pytest.mark.parametrize(
    ("changed", "parts"),
    [
        ({"env": {**SPEC.env, "PASSED": "on"}}, ["environment"]),
        ({"env": {**SPEC.env, "ENGINE_KEY_HASH": "0" * 64}}, ["key"]),
        ({"digest": "sha256:2"}, ["image"]),
        ({"limits": Limits(memory_mb=128, cpus=0.5)}, ["limits"]),
        ({"limits": Limits(memory_mb=256, cpus=0.1, pids=9, disk_mb=7), "runtime": "runsc", "egress": "none"}, []),
    ],
)
def test_changed_incarnation_makes_a_difference_and_a_policy_makes_none(changed, parts):
    assert differing(**changed) == parts


@pytest.mark.parametrize(
    ("networks", "parts"),
    [([], ["network"]), (["engine_net-acme.2"], []), (["engine_net-other"], ["network"]), ([*NETWORKS, "bridge"], ["network"])],
)
def test_network_counts_as_the_daemon_lists_it(networks, parts):
    assert differing(networks=networks) == parts


@pytest.mark.parametrize("label", ["", "no json", "7"])
def test_container_without_a_readable_label_differs(label):
    assert list(makings.differing(makings.noted(label, NETWORKS, ""), SPEC, Options())) == ["unknown"]


def test_label_holds_no_value_of_the_environment():
    label = makings.note(replace(SPEC, env={**SPEC.env, "SECRET": "s3cret-value"}), Options())
    assert "s3cret-value" not in label
    assert SPEC.env["ENGINE_KEY_HASH"] not in label
    assert max(map(len, json.loads(label).values())) < 64


def test_container_from_before_the_label_runs_on_and_is_adopted_by_no_start(client, docked):
    wanted = spec()
    docked.create(wanted)
    old = dock.container_of(client, docked, wanted.ref)
    config = containers.config(replace(wanted, digest=old.attrs["Image"]), f"{docked.options.network}-acme", docked.options)
    for label in (containers.MADE_OF, containers.TOKEN):
        del config["Labels"][label]
    docked.destroy(wanted.ref)
    client.api.create_container_from_config(config, containers.spare_name(docked.options.deployment, wanted.ref))
    docked.start(wanted.ref)
    (found,) = docked.list()
    assert (found.ref, found.state, list(docked.differing(found, wanted))) == (wanted.ref, State.RUNNING, ["unknown"])
    with pytest.raises(InstanceDiffers, match="differs in unknown"):
        docked.create(wanted)
    assert docked.observe(wanted.ref) is State.RUNNING
