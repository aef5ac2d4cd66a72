"""Operations carried out on real containers, in this process: what the registry says of an engine is what the daemon says."""

import io
import os
import secrets

import pytest
from django.core.management import CommandError, call_command
from django.db.models.functions import Now

from audit import actors
from audit.models import AuditRow
from engines import admission, backends, disk, health, lifecycle, reconcile, specs
from engines.admission import Question
from engines.backends.base import Ref, Spec, State, instance_name
from engines.backends.docker import Options, containers
from engines.models import Engine, Operation
from policy import overrides, products
from policy.errors import DiskExceeded
from policy.models import Product
from tests import waiting
from tests.conftest import make_running
from tests.engines import crew
from tests.engines.backends import dock
from tests.engines.backends.inside import GATEWAY, WORLD, WORLD_PORT, reached, status_from
from tests.engines.backends.runtimes import IMAGE, is_healthy
from tests.engines.strangers import OK, listening, saying
from tests.envelopes import assert_error
from tests.waiting import until

ACME = actors.product("acme")
MB = 1024 * 1024


@pytest.fixture
def tune(client, settings, product):
    """Makes this process's backend Docker's, for the length of the test; called again, with further settings."""
    usual, name = settings.ENV, f"test-{secrets.token_hex(3)}"
    chosen = {"engine_backend": "docker", "docker_url": dock.URL, "deployment": name, "engine_network": name}

    def change(**values):
        settings.ENV = type(usual).model_validate({**usual.model_dump(), **chosen, "engine_memory_mb": 128, **values})
        backends.get.cache_clear()
        return backends.get()

    yield change
    settings.ENV = usual
    backends.get.cache_clear()
    dock.sweep(client, name)


@pytest.fixture
def fleet(tune):
    return tune()


def container_of(client, engine):
    engine.refresh_from_db()
    return dock.container_of(client, backends.get(), specs.ref_of(engine))


# -- what it may reach ---------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="makes network interfaces")
def test_running_engine_obeys_a_changed_rule_and_an_override(client, world, fleet, product, carry_out):
    def reaches(rule):
        assert reconcile.confine()
        assert not reconcile.confine()  # nothing is left to change
        assert admission.explain(products.get(product.pk), Question("start", "alice")).egress == rule
        return reached(container, (WORLD, WORLD_PORT)) == {(WORLD, WORLD_PORT)}

    engine = make_running(product, "alice", carry_out)
    container = container_of(client, engine)
    until(lambda: reached(container, (WORLD, WORLD_PORT)))
    products.update_policy(product.pk, {"egress": "none"}, by=actors.ADMIN)
    assert not reaches("none")
    listed = [f"{WORLD}/32:1-{WORLD_PORT}"]
    override = overrides.grant(product.pk, "egress", listed, reason="an incident", expires_in_s=3600, by=actors.ADMIN)
    assert reaches(listed)
    overrides.end(product.pk, override.pk, by=actors.ADMIN)
    assert not reaches("none")
    assert is_healthy(engine.port)  # callers reach an engine that reaches nothing


# -- what it is made of --------------------------------------------------------------------------------------------------------


@pytest.fixture
def tag(client):
    """Makes further images of the demo engine, and lets the name `tag.name` stand for one of them."""

    class Tag:
        name = f"roundhouse-test-{secrets.token_hex(3)}:latest"
        images: list[str] = []

        def move(self):
            image = dock.build(client, f"FROM roundhouse-demo-engine\nLABEL number={len(self.images)}")
            client.images.get(image).tag(self.name)
            self.images = [*self.images, image]
            return image

    tag = Tag()
    yield tag
    for image in {tag.name, *tag.images}:
        remove_image(client, image, force=True)


def remove_image(client, image, **how):
    """For a moment the daemon may take a container for running that has ended and been removed."""

    def is_removed():
        try:
            client.images.remove(image, **how)
        except dock.docker.errors.ImageNotFound:
            return True
        except dock.docker.errors.APIError as refused:
            if "running container" not in str(refused):
                raise
            return False
        return True

    waiting.until(is_removed, 10, "no container has the image")


def test_engine_runs_the_image_that_is_stored_whatever_its_name_stands_for_later(client, tag, fleet, product, carry_out):
    first = tag.move()
    products.update_policy(product.pk, {"engine_image": tag.name}, by=actors.ADMIN)
    engine = make_running(product, "alice", carry_out)
    second = tag.move()
    carry_out(lifecycle.stop(engine, by=ACME))
    container_of(client, engine).remove(force=True)
    started = carry_out(lifecycle.start(engine, by=ACME))
    assert container_of(client, engine).image.id == engine.image_digest == first
    assert AuditRow.objects.get(operation_id=started.pk).metadata["digest"] == first
    carry_out(lifecycle.rotate_key(engine, by=ACME))  # a new incarnation is made of what the name stands for
    assert container_of(client, engine).image.id == engine.image_digest == second


def test_start_takes_what_the_name_stands_for_once_the_image_is_gone(client, tag, fleet, product, carry_out):
    first = tag.move()
    products.update_policy(product.pk, {"engine_image": tag.name}, by=actors.ADMIN)
    engine = make_running(product, "alice", carry_out)
    second = tag.move()
    carry_out(lifecycle.stop(engine, by=ACME))
    container_of(client, engine).remove(force=True)
    remove_image(client, first)
    assert carry_out(lifecycle.start(engine, by=ACME)).state == "succeeded"
    assert container_of(client, engine).image.id == engine.image_digest == second


def test_digest_is_that_of_the_container_also_where_an_attempt_died_before_it_was_stored(client, tag, fleet, product, carry_out):
    first = tag.move()
    products.update_policy(product.pk, {"engine_image": tag.name}, by=actors.ADMIN)
    provision = lifecycle.provision(product, "alice", by=ACME)
    made = fleet.create(dead_workers_spec(provision.engine))
    assert made.digest == first
    tag.move()
    assert carry_out(provision).state == "succeeded"
    engine = Engine.objects.get()
    assert container_of(client, engine).image.id == engine.image_digest == first


def dead_workers_spec(engine):
    env = {"ENGINE_KEY_HASH": engine.key_hash}
    return Spec(Ref(engine.pk, 1), "acme", engine.engine_version, engine.port, env)


def test_policy_that_names_a_digest_allows_that_one_and_no_other(client, fleet, api, product):
    digest, other = client.images.get(IMAGE).id, client.images.get(Options.guard_image).id
    products.update_policy(product.pk, {"images": [digest]}, by=actors.ADMIN)
    refused = api.call("POST", "/engines/provision", {"user_id": "alice", "engine_version": other})
    assert_error(refused, 403, "POLICY_DENIED")
    assert AuditRow.objects.get(action="provision_denied").metadata == {"rule": "images", "limit": digest, "value": other}
    with crew.at_work():
        made = api.call("POST", "/engines/provision", {"user_id": "alice", "engine_version": digest})
    assert made.status_code == 200, made.content
    engine = Engine.objects.get()
    assert container_of(client, engine).image.id == engine.image_digest == engine.engine_version == digest
    assert AuditRow.objects.get(action="provision").metadata["digest"] == digest


# -- what it may use -----------------------------------------------------------------------------------------------------------


def limits_of(client, engine):
    host = container_of(client, engine).attrs["HostConfig"]
    return host["Memory"] // MB, host["NanoCpus"] / 1e9, host["PidsLimit"]


def test_engine_has_the_limits_of_its_products_policy(client, fleet, product, carry_out):
    products.update_policy(product.pk, {"memory_mb": 96, "cpus": 0.5, "pids": 40}, by=actors.ADMIN)
    product.refresh_from_db()
    engine = make_running(product, "alice", carry_out)
    assert limits_of(client, engine) == (96, 0.5, 40)
    assert engine.memory_mb == 96


def test_memory_is_what_is_counted_whenever_a_container_is_made(client, fleet, product, carry_out):
    engine = make_running(product, "alice", carry_out)
    products.update_policy(product.pk, {"memory_mb": 64}, by=actors.ADMIN)
    engine = Engine.objects.select_related("product").get()
    carry_out(lifecycle.stop(engine, by=ACME))
    container_of(client, engine).remove(force=True)
    carry_out(lifecycle.start(engine, by=ACME))
    assert limits_of(client, engine)[0] == engine.memory_mb == 128
    carry_out(lifecycle.rotate_key(engine, by=ACME))
    assert limits_of(client, engine)[0] == engine.memory_mb == 64


def test_policys_runtime_reaches_the_daemon_with_the_next_incarnation(client, tune, product, carry_out):
    """Docker itself has runc under a second name."""
    other = "io.containerd.runc.v2"
    tune(engine_runtimes=f"runc, {other}, no-such")
    engine = make_running(product, "alice", carry_out)
    products.update_policy(product.pk, {"runtime": "no-such"}, by=actors.ADMIN)
    refused = carry_out(lifecycle.rotate_key(engine, by=ACME))
    assert (refused.state, refused.error_code) == ("failed", "runtime_missing")
    assert runtime_of(client, engine) == "runc"  # the old incarnation, as it was
    assert engine.status == "running"
    products.update_policy(product.pk, {"runtime": other}, by=actors.ADMIN)
    carry_out(lifecycle.stop(engine, by=ACME))
    carry_out(lifecycle.start(engine, by=ACME))
    assert runtime_of(client, engine) == "runc"
    carry_out(lifecycle.rotate_key(engine, by=ACME))
    assert runtime_of(client, engine) == other
    tune(engine_runtimes="runc")
    refused = carry_out(lifecycle.restart(engine, by=ACME))
    assert (refused.state, refused.error_code) == ("failed", "runtime_not_allowed")
    assert [found.state for found in backends.get().list()] == [State.EXITED]


def test_try_runtime_carries_an_engine_through_its_life_and_leaves_nothing(client, tune):
    backend = tune(engine_runtimes="runc, io.containerd.runc.v2")
    said = io.StringIO()
    with crew.at_work():
        call_command("try_runtime", "io.containerd.runc.v2", stdout=said)
    assert [line.partition(":")[0] for line in said.getvalue().splitlines()] == ["provision", "execute", "destroy"]
    assert AuditRow.objects.filter(action__in=["provision", "destroy"]).count() == 2
    assert backend.list() == []
    assert not Engine.objects.living().exists()
    assert not Product.objects.living().exclude(slug="acme").exists()


@pytest.mark.parametrize("runtime", ["runc", "kata"])
def test_try_runtime_says_why_it_cannot(client, tune, runtime):
    tune(engine_backend="memory", engine_runtimes="runc")
    with crew.at_work(), pytest.raises(CommandError, match="no container runtimes" if runtime == "runc" else "allows: runc"):
        call_command("try_runtime", runtime)
    assert not Product.objects.living().exclude(slug="acme").exists()


def runtime_of(client, engine):
    return container_of(client, engine).attrs["HostConfig"]["Runtime"]


# -- where it is reached -------------------------------------------------------------------------------------------------------


def test_port_is_published_where_the_settings_say(client, tune, product, carry_out):
    tune(engine_bind="0.0.0.0")
    engine = make_running(product, "alice", carry_out)
    assert container_of(client, engine).ports == {"8000/tcp": [{"HostIp": "0.0.0.0", "HostPort": str(engine.port)}]}


@pytest.mark.skipif(os.geteuid() != 0, reason="makes network interfaces")
def test_engine_answers_another_machine_only_where_its_port_is_bound_to_an_address_of_theirs(tune, world, product, carry_out):
    tune(engine_bind=GATEWAY)
    reachable = make_running(product, "alice", carry_out)
    assert status_from(world, GATEWAY, reachable.port) == 200
    tune()
    own = make_running(product, "bob", carry_out)
    assert is_healthy(own.port)
    assert status_from(world, GATEWAY, own.port) is None
    assert status_from(world, GATEWAY, reachable.port) == 200


# -- full networks -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def full(client, fleet, no_pool_left):
    """A /29 made for the product, and no further network to be had; called, it fills the network and returns what fills it."""
    network = dock.make_network(client, fleet, f"{fleet.options.network}-acme")
    return lambda: [dock.stranger(client, fleet, network.name) for _ in range(5)]


def assert_network_full(answer):
    assert_error(answer, 503, "CAPACITY_EXHAUSTED")
    said = answer.json()["error"]
    assert said["details"]["cause"] == "network_full"
    assert said["message"].startswith("The product's network has no address left.")
    operation = Operation.objects.get(pk=said["details"]["operation_id"])
    assert "give the runtime more or larger address pools." in operation.error_message  # for operators


@pytest.mark.daemon
def test_provision_on_a_full_network_is_a_named_503_and_leaves_nothing(client, fleet, full, api):
    strangers = full()
    with crew.at_work():
        assert_network_full(api.call("POST", "/engines/provision", {"user_id": "alice"}))
        engine = Engine.objects.get()
        assert AuditRow.objects.get(action="provision_failed").metadata["error"] == "network_full"
        assert engine.status == "failed"
        assert fleet.list() == []
        assert not dock.has_volume(client, engine.pk)
        with dock.listening(engine.port):  # nothing holds it
            assert api.call("DELETE", "/engines/alice").status_code == 200
        strangers[0].remove(force=True)
        assert api.call("POST", "/engines/provision", {"user_id": "alice"}).status_code == 200


@pytest.mark.daemon
def test_start_on_a_full_network_is_a_named_503_and_works_once_there_is_room(client, fleet, full, api):
    with crew.at_work():
        assert api.call("POST", "/engines/provision", {"user_id": "alice"}).status_code == 200
        assert api.call("POST", "/engines/alice/stop").status_code == 200
        strangers = full()
        assert_network_full(api.call("POST", "/engines/alice/start"))
        assert AuditRow.objects.get(action="start_failed").metadata["error"] == "network_full"
        engine = Engine.objects.get()
        assert (engine.status, engine.may_run) == ("failed", False)
        with dock.listening(engine.port):
            assert [found.state for found in fleet.list()] != [State.RUNNING]
        strangers[0].remove(force=True)
        assert api.call("POST", "/engines/alice/start").status_code == 200
        assert api.call("DELETE", "/engines/alice").status_code == 200
        assert fleet.list() == []
        assert not dock.has_volume(client, engine.pk)


# -- names that are taken ------------------------------------------------------------------------------------------------------


def test_container_in_an_engines_name_is_removed_with_a_row(client, fleet, api, product):
    """Both names that its container has in turn: the one it is made with, and the one it runs under."""
    operation = lifecycle.provision(product, "alice", by=ACME)
    ref = Ref(operation.engine_id, 1)
    deployment = fleet.options.deployment
    names = [containers.spare_name(deployment, ref), instance_name(deployment, ref.engine_id)]
    strangers = [client.containers.create(IMAGE, name=name).id[:12] for name in names]
    with crew.at_work():
        waiting.until(lambda: not Operation.objects.filter(finished_at=None).exists(), 60)
    rows = AuditRow.objects.filter(action="orphan_removed").order_by("id")
    assert [row.metadata["container"] for row in rows] == strangers
    for row in rows:
        assert (row.engine_id, row.operation_id, row.actor) == (ref.engine_id, operation.pk, "system")
        assert (row.metadata["reason"], row.metadata["incarnation"]) == ("name_taken", 1)
    assert Engine.objects.get().status == "running"
    assert container_of(client, Engine.objects.get()).name == names[1]


def test_container_in_an_engines_name_has_its_row_also_when_the_boot_fails(client, fleet, product, carry_out, settings):
    operation = lifecycle.provision(product, "alice", by=ACME)
    client.containers.create(IMAGE, name=containers.spare_name(fleet.options.deployment, Ref(operation.engine_id, 1)))
    settings.ENV = settings.ENV.model_copy(update={"boot_timeout_s": 0.01})
    assert carry_out(operation).error_code == "boot_timeout"
    assert AuditRow.objects.get(action="orphan_removed").metadata["reason"] == "name_taken"


# -- its disk ------------------------------------------------------------------------------------------------------------------

WRITE = """
import os
for number in range({count}):
    with open(f"/data/{name}-{{number}}", "wb") as file:
        file.write(os.urandom(4 * 2**20))
"""


def test_engine_that_fills_its_volume_is_warned_not_started_and_stopped(client, fleet, product, carry_out):
    products.update_policy(product.pk, {"disk_mb": 8}, by=actors.ADMIN)
    product.refresh_from_db()
    engine = make_running(product, "alice", carry_out)

    def write(name, count):
        assert dock.run_inside(container_of(client, engine), WRITE.format(name=name, count=count)) == ""
        Engine.objects.update(disk_due_at=None)
        disk.sweep()
        engine.refresh_from_db()

    write("a", 3)
    assert 12 <= engine.disk_used_mb <= 13
    row = AuditRow.objects.get(action="disk_exceeded")
    assert (row.engine_id, row.metadata) == (engine.pk, {"used_mb": engine.disk_used_mb, "limit_mb": 8})
    with pytest.raises(DiskExceeded):
        lifecycle.restart(engine, by=ACME)
    write("b", 2)
    operation = carry_out(Operation.objects.open().get())
    assert (operation.kind, operation.state, operation.params["cause"]) == ("stop", "succeeded", "disk")
    assert fleet.observe(Ref(engine.pk, 1)) == State.EXITED
    with pytest.raises(DiskExceeded):
        lifecycle.start(engine, by=ACME)
    overrides.grant(product.pk, "disk_mb", 40, reason="clean up", expires_in_s=60, by=actors.ADMIN)
    assert carry_out(lifecycle.start(Engine.objects.get(), by=ACME)).state == "succeeded"
    assert container_of(client, engine).attrs["HostConfig"]["Ulimits"][-1]["Hard"] == 40 * MB


# -- made anew -----------------------------------------------------------------------------------------------------------------


def test_engine_cut_off_from_its_network_is_made_anew_on_its_volume(client, fleet, product, carry_out):
    engine = make_running(product, "alice", carry_out)
    container = container_of(client, engine)
    dock.run_inside(container, "open('/data/kept', 'w').write('yes')")
    client.networks.get(f"{fleet.options.network}-acme").disconnect(container, force=True)
    reconcile.sweep()
    engine.refresh_from_db()
    assert engine.differs == "network"
    operation = carry_out(lifecycle.restart(engine, by=ACME))
    assert (operation.state, AuditRow.objects.get(operation_id=operation.pk).metadata["remade"]) == ("succeeded", "differs")
    anew = container_of(client, engine)
    assert anew.id != container.id
    assert dock.run_inside(anew, "print(open('/data/kept').read())") == "yes\n"


def test_changed_bind_holds_from_the_next_start_and_counts_until_then(client, tune, product, carry_out):
    tune(engine_bind="127.0.0.2")
    engine = make_running(product, "alice", carry_out)
    assert published(client, engine) == "127.0.0.2"
    tune(engine_bind="127.0.0.1")
    reconcile.sweep()
    assert [found.differs for found in Engine.objects.differing()] == ["address"]
    assert published(client, engine) == "127.0.0.2"  # no engine is restarted by a setting
    assert carry_out(lifecycle.restart(engine, by=ACME)).state == "succeeded"
    assert published(client, engine) == "127.0.0.1"
    assert not Engine.objects.differing().exists()


def published(client, engine):
    """The address of the host on which the engine's port is published."""
    (bound,) = container_of(client, engine).attrs["NetworkSettings"]["Ports"]["8000/tcp"]
    return bound["HostIp"]


# -- strangers on its port -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("trouble", "cause"), [("kill", "instance_ended"), ("disconnect", "instance_elsewhere")])
def test_stranger_on_the_port_of_an_engine_does_not_keep_it_running(client, fleet, product, carry_out, trouble, cause):
    reconcile.host_is_settled()
    engine = make_running(product, "alice", carry_out)
    container = container_of(client, engine)
    if trouble == "kill":
        container.kill()
    else:
        (network,) = container.attrs["NetworkSettings"]["Networks"]
        client.networks.get(network).disconnect(container, force=True)
    healthy_at = Engine.objects.get(pk=engine.pk).last_health_at
    with listening(saying(OK), port=engine.port):
        Engine.objects.filter(pk=engine.pk).update(next_probe_at=Now())
        health.probe_due()
        assert reconcile.sweep() == 1
    engine.refresh_from_db()
    assert (engine.status, engine.last_health_at) == ("failed", healthy_at)
    assert AuditRow.objects.get(action="health_failed").metadata["cause"] == cause
    assert admission.explain(product, Question("admit", "alice")).would == "refuse"
