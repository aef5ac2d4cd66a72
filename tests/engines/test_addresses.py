"""Where engines are reached: what products are told, and where we probe."""

from uuid import uuid4

import pytest
from pydantic import ValidationError

from common.env import Env
from engines import addresses
from engines.health import probes
from tests import servers
from tests.engines.strangers import OK, listening, saying


@pytest.fixture
def set_env(settings):
    """Replaces the process's settings by those of a deployment with these variables."""

    def replace(**changed):
        settings.ENV = settings.ENV.model_copy(update=changed)

    return replace


def test_url_names_the_port_or_the_container(running_engine, set_env):
    assert addresses.url(running_engine) == f"http://127.0.0.1:{running_engine.port}"
    set_env(engine_url_template="https://engines.example.com/{port}/{container}", deployment="fleet")
    name = f"fleet-{running_engine.pk}"
    assert addresses.url(running_engine) == f"https://engines.example.com/{running_engine.port}/{name}"
    set_env(engine_url_template="", engine_reach="container")
    assert addresses.url(running_engine) == f"http://{name}:8000"


@pytest.mark.parametrize(
    ("bind", "host"),
    [("127.0.0.9", "127.0.0.9"), ("0.0.0.0", "127.0.0.1"), ("10.1.2.3", "10.1.2.3"), ("::", "[::1]"), ("fd00::1", "[fd00::1]")],
)
def test_url_names_the_address_that_ports_are_published_on(running_engine, set_env, bind, host):
    set_env(engine_bind=bind, engine_url_template="")
    assert addresses.url(running_engine) == f"http://{host}:{running_engine.port}"


@pytest.mark.parametrize(
    ("bind", "host"),
    [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("10.1.2.3", "10.1.2.3"), ("::", "[::1]"), ("fd00::1", "[fd00::1]")],
)
def test_probe_goes_to_the_address_that_ports_are_published_on(set_env, bind, host):
    set_env(engine_bind=bind)
    assert addresses.probe_url(uuid4(), 9001) == f"http://{host}:9001"


def test_probe_goes_to_the_container_whatever_products_are_told(set_env):
    set_env(engine_reach="container", deployment="fleet", engine_url_template="https://engines.example.com/{container}")
    engine_id = uuid4()
    assert addresses.probe_url(engine_id, 9001) == f"http://fleet-{engine_id}:8000"


def test_probe_finds_an_engine_on_another_address_of_the_host(set_env):
    set_env(engine_bind="127.0.0.9")
    with listening(saying(OK), address="127.0.0.9") as (port,):
        assert probes.probe_all([probes.Target(uuid4(), 1, port, "0" * 64)]) == [probes.Result(True, "ok")]


def test_probe_of_a_name_that_nobody_has_is_a_failure(set_env):
    set_env(engine_reach="container")
    assert probes.probe_all([probes.Target(uuid4(), 1, servers.free_port(), "0" * 64)]) == [probes.Result(False, "connect_error")]


@pytest.mark.parametrize(
    "wrong",
    [
        {"engine_bind": "localhost"},
        {"engine_url_template": "http://{host}:{port}"},
        {"engine_url_template": "http://{}"},
        {"engine_url_template": "http://{port.x}"},
        {"engine_url_template": "http://{port"},
        {"engine_reach": "container", "engine_backend": "subprocess"},
        {"engine_reach": "container", "engine_backend": "docker", "deployment": "d" * 27},
    ],
)
def test_settings_refuse_addresses_that_cannot_be(wrong):
    with pytest.raises(ValidationError):
        Env(**wrong)


@pytest.mark.parametrize(
    "wrong", ["999.0.0.0/8", "10.0.0.0/33", "10.0.0.0/255.0.0.0", "10.0.0", "fd00::/8", "10.0.0.0/8 10.1.0.0/16"]
)
def test_settings_refuse_what_is_no_range_of_addresses(wrong):
    with pytest.raises(ValidationError, match=f"ORCH_ENGINE_EGRESS_DENY: '{wrong}' is not a range"):
        Env(engine_egress_deny=f"169.254.0.0/16, {wrong}")


@pytest.mark.parametrize("right", ["", "192.0.2.1", "10.0.0.1/8, 10.1.0.0/16,"])
def test_settings_take_ranges_and_addresses(right):
    assert Env(engine_egress_deny=right).engine_egress_deny == right


@pytest.mark.parametrize(
    "wrong", ["api.example.com:443", "10.0.5.7:0", "10.0.5.7:8080/sctp", "10.0.5.7:9-8", "fd00::1:443", "10.0.5.7:"]
)
def test_settings_refuse_what_is_no_exception_from_denied_ranges(wrong):
    with pytest.raises(ValidationError, match="ORCH_ENGINE_EGRESS_ALLOW"):
        Env(engine_egress_allow=f"10.0.5.0/24, {wrong}")


def test_settings_take_exceptions_with_and_without_ports():
    right = "10.0.5.0/24, 10.0.5.7:8080,10.0.5.7:5000-5010/udp"
    assert Env(engine_egress_allow=right).engine_egress_allow == right


def test_settings_take_the_longest_name_of_a_deployment_that_is_a_hosts_name():
    env = Env(engine_reach="container", engine_backend="docker", deployment="d" * 26)
    assert len(env.url_template.format(port=1, container=f"{env.deployment}-{uuid4()}").split("/")[2].split(":")[0]) == 63
