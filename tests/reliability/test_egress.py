"""A changed rule `egress` reaches running engines by itself, through the processes of a deployment."""

import os

import pytest

from audit import actors
from engines.models import Engine
from policy import overrides, products
from tests import waiting
from tests.conftest import make_product, running_stack
from tests.engines.backends.inside import WORLD, WORLD_PORT, reached, world as beyond_the_host
from tests.reliability.runtimes import Docker, used

WITHIN_S = 10
pytestmark = pytest.mark.docker


@pytest.fixture
def runtime(db):
    runtime = Docker()
    with used(runtime):
        yield runtime


@pytest.fixture
def stack(runtime):
    with running_stack("web", "worker", edition="small", **runtime.environment) as processes:
        yield processes


@pytest.fixture
def world():
    with beyond_the_host() as name:
        yield name


@pytest.mark.skipif(os.geteuid() != 0, reason="makes network interfaces")
def test_policy_and_override_reach_a_running_engine_within_seconds(stack, runtime, world):
    def reaches() -> bool:
        return reached(container, (WORLD, WORLD_PORT)) == {(WORLD, WORLD_PORT)}

    product = make_product()
    assert stack.call("POST", "/engines/provision", product.key, {"user_id": "alice"}).status_code == 200
    (container,) = runtime.client.containers.list(filters={"label": f"roundhouse.engine={Engine.objects.get().pk}"})
    waiting.until(reaches)
    products.update_policy(product.pk, {"egress": "none"}, by=actors.ADMIN)
    waiting.until(lambda: not reaches(), WITHIN_S)
    overrides.grant(product.pk, "egress", "internet", reason="an incident", expires_in_s=60, by=actors.ADMIN)
    waiting.until(reaches, WITHIN_S)
    assert (
        stack.call("POST", "/policy/explain", product.key, {"verb": "start", "user_id": "alice"}).json()["egress"] == "internet"
    )
