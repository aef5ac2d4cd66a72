"""`bench provision` on a real daemon, with two engines: that it measures what it says, and leaves nothing."""

import signal
import threading

import pytest
from django.core.management.base import CommandError

from audit import actors
from bench import provision, running_deployment
from engines.models import Engine, Operation
from policy import products
from tests import waiting
from tests.conftest import running_stack
from tests.reliability.runtimes import Docker, used

pytestmark = pytest.mark.docker


@pytest.fixture
def docker_stack(db):
    runtime = Docker()
    with used(runtime), running_stack(**runtime.environment) as stack:
        yield stack, runtime


def test_provision_measures_real_lives_and_leaves_no_engine(docker_stack):
    stack, runtime = docker_stack
    with running_deployment.deployment(stack.url) as fleet:
        seconds = provision.one_at_a_time(fleet, 1)
        ours, raw = provision.in_bulk(fleet, 2, 2)
    assert all(len(seconds[name]) == 1 for pair in provision.PAIRS.items() for name in pair)
    assert len(seconds[provision.NETWORKED]) == 1
    assert min(ours, raw) > 0
    assert "are Docker's for a network of its own" in provision.report(seconds)[0]
    done = Operation.objects.filter(state="succeeded", engine__product=fleet.product).values_list("kind", flat=True)
    assert sorted(done) == ["destroy"] * 3 + ["provision"] * 3 + ["sleep", "wake"]
    assert not Engine.objects.filter(destroyed_at=None).exists()
    assert runtime.running() == []
    assert runtime.volumes() == set()


@pytest.fixture
def left(docker_stack):
    """Names of raw containers, volumes and networks that have come since the test began."""
    _, runtime = docker_stack

    def names():
        there = [*runtime.client.containers.list(all=True, ignore_removed=True), *runtime.client.networks.list()]
        return {found.name for found in [*there, *runtime.client.volumes.list()] if found.name.startswith("bench-")}

    before = names()
    return lambda: names() - before


def test_provision_leaves_no_raw_container_when_a_call_is_refused(docker_stack, left):
    with running_deployment.deployment(docker_stack[0].url) as fleet:
        products.update_policy(fleet.product.pk, {"rate_limit_rpm": 1}, by=actors.ADMIN)
        with pytest.raises(CommandError, match="RATE_LIMITED"):
            provision.one_at_a_time(fleet, 2)  # the second admit
    waiting.until(lambda: not left())  # not at once: somebody else on the daemon may measure, too


def test_provision_in_bulk_leaves_no_raw_container_when_it_is_interrupted(docker_stack, left):
    def interrupt():
        waiting.until(left, 60)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    with running_deployment.deployment(docker_stack[0].url) as fleet:
        someone = threading.Thread(target=interrupt)
        someone.start()
        with pytest.raises(KeyboardInterrupt):
            provision.in_bulk(fleet, 2, 2)
        someone.join()
    waiting.until(lambda: not left())
