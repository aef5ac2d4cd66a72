"""compose.yaml with our own images on a real daemon: a product's container provisions an engine and calls it."""

import json

import pytest
import yaml

from config.processes import of_kind
from tests import waiting
from tests.deployment.composed import Composed, command, refresh_images
from tests.deployment.test_compose_file import ON_ENGINES
from tests.engines.backends import dock
from tests.engines.backends.inside import reached
from tests.engines.backends.runtimes import parse_events

pytestmark = pytest.mark.timeout(900)  # the images may have to be built
SMALL = {process.name for process in of_kind("app", "once", edition="small")}


@pytest.fixture(scope="module")
def composed(tmp_path_factory):
    """The deployment, up; all tests of this file share it."""
    client = dock.connect()
    compose = command()
    refresh_images(client)
    deployment = Composed(client, tmp_path_factory.mktemp("compose"), compose)
    try:
        deployment.up()
        yield deployment
    finally:
        deployment.down()


@pytest.fixture(scope="module")
def app(composed):
    """The container of product acme, which alice's engine belongs to; `key` is acme's platform key, `engine` alice's."""
    with composed.app_of("acme") as app:
        body = {"slug": "acme", "display_name": "Acme"}
        app.key = app.call("POST", "/products/register", body, X_Admin_Key=composed.env["ORCH_ADMIN_KEY"])["platform_api_key"]
        app.engine = app.call("POST", "/engines/provision", {"user_id": "alice"}, X_Platform_Key=app.key)
        yield app


def engine_of(composed, app):
    """The container of the app's engine, by the name that its URL says."""
    return composed.client.containers.get(app.engine["url"].removeprefix("http://").removesuffix(":8000"))


def probe_times(app, count):
    """That many moments at which the engine was found healthy, one after the other."""
    seen = []

    def is_enough():
        found = app.call("GET", "/engines/alice", X_Platform_Key=app.key)
        assert found["status"] == "running"
        if found["last_health_at"] not in (None, *seen):
            seen.append(found["last_health_at"])
        return len(seen) >= count

    waiting.until(is_enough, 30, f"{count} healthy probes")
    return seen


def test_products_container_calls_the_engine_it_provisioned(composed, app):
    assert app.engine["url"] == f"http://{composed.name}-{app.engine['engine_id']}:8000"
    status, said = app.ask("POST", app.engine["url"] + "/execute", {"input": "hello"}, X_Engine_Key=app.engine["api_key"])
    assert status == 200
    assert parse_events(said)[-1] == ("done", {"echo": "hello", "counter": 1, "boots": 1})
    assert app.ask("POST", app.engine["url"] + "/execute", {"input": "hello"}, X_Engine_Key="another")[0] == 401


def test_engine_stays_healthy_for_three_probes(app):
    times = probe_times(app, 3)
    assert times == sorted(times)


def test_engine_reaches_neither_the_control_plane_nor_its_clients(composed, app):
    services = {"web": 8000, "postgres": 5432, "redis": 6379, "worker": 8000}
    names = list(services.items())
    addresses = [
        (network["IPAddress"], port)
        for name, port in services.items()
        for network in composed.container(name).attrs["NetworkSettings"]["Networks"].values()
    ]
    assert reached(composed.container("keeper"), *names[1:3]) == set(names[1:3])
    assert reached(engine_of(composed, app), ("127.0.0.1", 8000), *names, *addresses) == {("127.0.0.1", 8000)}
    assert reached(app.container, *names) == {("web", 8000)}


MANY_DEAD = """
import hashlib, os, uuid, django
django.setup()
from engines.health import probes
living = uuid.UUID(os.environ["LIVING"])
key_hash = hashlib.sha256(os.environ["LIVING_KEY"].encode()).hexdigest()
targets = [probes.Target(engine_id, 1, 9001, key_hash) for engine_id in (*(uuid.uuid4() for _ in range(120)), living)]
print([result.text for result in probes.probe_all(targets)][-2:])
"""


def test_probe_of_a_living_engine_does_not_wait_for_names_that_nobody_has(composed, app):
    """Docker hands on what it does not know to the host's name servers: here, to one that does not answer."""
    code = f"import os; os.environ['DJANGO_SETTINGS_MODULE'] = 'config.settings'\n{MANY_DEAD}"
    env = [
        *composed.container("worker").attrs["Config"]["Env"],
        f"LIVING={app.engine['engine_id']}",
        f"LIVING_KEY={app.engine['api_key']}",
        "ORCH_HEALTH_CHECK_TIMEOUT_S=3",
    ]
    network = f"{composed.name}_engines-acme"
    slow = {"dns": ["192.0.2.1"], "dns_opt": ["timeout:1", "attempts:1"]}
    said = composed.client.containers.run(
        "roundhouse:latest", ["-c", code], entrypoint=["python"], environment=env, network=network, remove=True, **slow
    )
    assert said.decode().strip() == "['connect_error', 'ok']"


def test_workers_are_the_only_ones_beside_the_product_on_the_engines_network(composed, app):
    network = f"{composed.name}_engines-acme"
    attached = {service for service in composed.services() if network in composed.networks_of(service)}
    assert attached == ON_ENGINES & SMALL


def test_worker_that_is_made_again_probes_on(composed, app):
    before = composed.container("worker").id
    composed.compose("up", "--detach", "--force-recreate", "--no-deps", "worker")
    assert composed.container("worker").id != before
    probe_times(app, 3)
    rows = app.call("GET", "/audit?user_id=alice&action=health_check", X_Platform_Key=app.key)
    assert [row["metadata"]["healthy"] for row in rows["results"]] == [True]


def test_up_again_makes_nothing_anew(composed, app):
    """Not even the workers, which are on networks that compose knows nothing of."""
    services = composed.services()
    before = {service: composed.container(service).id for service in services}
    composed.compose("up", "--detach")
    assert {service: composed.container(service).id for service in services} == before


def test_processes_are_not_root_and_only_those_that_work_on_engines_hold_the_daemon(composed):
    for service in SMALL:
        attributes = composed.container(service).attrs
        assert attributes["Config"]["User"] == "10001:10001"
        assert attributes["HostConfig"]["ReadonlyRootfs"]
        assert attributes["HostConfig"]["Memory"] >= 512 * 1024**2
        assert attributes["HostConfig"]["PidsLimit"] >= 64
        sockets = [mount for mount in attributes["Mounts"] if mount["Destination"].endswith("docker.sock")]
        assert bool(sockets) == (service in ON_ENGINES)
        has_owner = any(variable.startswith("ORCH_DATABASE_OWNER_URL=") for variable in attributes["Config"]["Env"])
        assert has_owner == (service in ("keeper", "migrate"))


def test_log_agrees_with_the_registry_and_check_has_nothing_to_say(composed, app):
    assert "agree: 1 engines" in composed.compose("exec", "-T", "worker", "python", "manage.py", "audit_check")
    # Fails at a warning. That volumes are only measured is said as information, which does not fail.
    composed.compose("exec", "-T", "keeper", "python", "manage.py", "check", "--deploy", "--fail-level", "WARNING")


def test_up_makes_the_services_of_small_and_no_others(composed):
    assert composed.services() == {*SMALL, "postgres", "redis"}


def test_compose_takes_full_for_the_edition(composed, tmp_path):
    """Which services that starts is in the file, and `test_compose_file` has looked."""
    full = Composed(composed.client, tmp_path, command(), "full")
    services = yaml.safe_load(full.compose("config"))["services"]
    assert {process.name for process in of_kind("app", "once", edition="full")} <= set(services)
    assert {service["environment"].get("ORCH_PROCESSES", "full") for service in services.values()} == {"full"}


def test_image_keeps_nothing_of_where_it_was_built(composed):
    container = composed.container("web")
    search = "find / -xdev '(' -name .ca-bundle.crt -o -name pip.conf ')' 2>/dev/null"
    assert container.exec_run(["sh", "-c", search], user="0").output == b""
    history = json.dumps(composed.client.images.get("roundhouse:latest").history())
    assert "PIP_" not in history
