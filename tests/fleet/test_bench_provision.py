"""`bench provision` on a real daemon, with two engines: that it measures what it says, and leaves nothing."""

import pytest

from engines.models import Engine, Operation
from fleet.bench import provision, sut
from tests.conftest import running_stack
from tests.reliability.runtimes import Docker, used


@pytest.fixture
def docker_stack(db):
    runtime = Docker()
    with used(runtime), running_stack(**runtime.environment) as stack:
        yield stack, runtime


def test_provision_measures_real_lives_and_leaves_no_engine(docker_stack):
    stack, runtime = docker_stack
    with sut.deployment(stack.url) as fleet:
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
