"""The contract of `engines.backends.base`, on every backend."""

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from uuid import uuid4

import pytest

from engines.backends.base import (
    BackendError,
    ImageMissing,
    InstanceDiffers,
    InstanceMissing,
    Limits,
    Made,
    OtherRuns,
    Owner,
    PortTaken,
    Ref,
    RuntimeMissing,
    State,
)
from engines.backends.shutdown import stop_all
from tests.engines.backends import dock
from tests.engines.backends.runtimes import IMAGE, USER, Runtime, spec
from tests.waiting import until


@pytest.fixture
def memory(memory_server) -> Runtime:
    backend = memory_server.backend
    backend.missing_images |= {"no-such-image:1"}
    return Runtime(backend, "no-such-image:1", lambda engine_id: engine_id in backend.volumes)


@pytest.fixture
def subprocess(local) -> Runtime:
    return Runtime(local, "no-such-image:1", lambda engine_id: (local.root / str(engine_id) / "data").is_dir())


@pytest.fixture
def docker(client, docked) -> Runtime:
    return dock.runtime(client, docked)


@pytest.fixture(params=["memory", "subprocess", "docker"])
def runtime(request: pytest.FixtureRequest) -> Runtime:
    return request.getfixturevalue(request.param)


@pytest.fixture
def backend(runtime: Runtime):
    return runtime.backend


def test_resolve_names_a_digest_or_a_missing_image(runtime):
    digest = runtime.backend.resolve(IMAGE)
    assert re.fullmatch("sha256:[0-9a-f]{64}", digest)
    assert runtime.backend.resolve(IMAGE) == digest
    with pytest.raises(ImageMissing):
        runtime.backend.resolve(runtime.missing_image)


@pytest.mark.parametrize("image", [f"{IMAGE}/../../{IMAGE}", "Not An Image", "ab36c51b6172", "sha256:ab36c51b6172"])
def test_create_makes_nothing_of_an_image_outside_the_grammar(runtime, image):
    wanted = spec(image=image)
    for call in (lambda: runtime.backend.create(wanted), lambda: runtime.backend.resolve(image, runtime.backend.resolve(IMAGE))):
        with pytest.raises(ImageMissing, match="must be the name of an image"):
            call()
    assert runtime.backend.observe(wanted.ref) is State.ABSENT
    assert not runtime.has_volume(wanted.ref.engine_id)


def test_resolve_keeps_an_earlier_answer_while_there_is_that_image(backend):
    digest = backend.resolve(IMAGE)
    assert backend.resolve(IMAGE, digest) == digest


def test_create_says_what_the_instance_is_made_of_also_when_it_adopts(backend):
    wanted = replace(spec(), digest=backend.resolve(IMAGE))
    assert backend.create(wanted) == Made(wanted.digest, is_new=True)
    assert backend.create(replace(wanted, digest="")) == Made(wanted.digest, is_new=False)
    backend.start(wanted.ref)
    assert backend.create(wanted) == Made(wanted.digest, is_new=False)


def test_tidy_leaves_what_instances_need(backend):
    wanted = spec()
    backend.create(wanted)
    backend.tidy()
    backend.start(wanted.ref)
    assert backend.observe(wanted.ref) is State.RUNNING


def test_create_makes_instance_and_volume_without_starting(runtime):
    wanted = spec()
    runtime.backend.create(wanted)
    assert runtime.backend.observe(wanted.ref) is State.CREATED
    assert runtime.has_volume(wanted.ref.engine_id)


def test_list_volumes_names_owners_until_engines_are_removed(backend):
    wanted = spec()
    assert backend.list_volumes() == {}
    backend.create(wanted)
    assert [found.owner for found in backend.list()] == [Owner("acme", USER, IMAGE)]
    backend.destroy(wanted.ref)
    assert backend.list_volumes() == {wanted.ref.engine_id: Owner("acme", USER)}
    backend.remove(wanted.ref.engine_id)
    assert backend.list_volumes() == {}


def test_measure_answers_for_every_engine_and_changes_nothing(backend):
    wanted, absent = spec(), uuid4()
    backend.create(wanted)
    before = backend.list_volumes()
    for _ in range(2):
        usage = backend.measure([wanted.ref.engine_id, absent], budget_s=10)
        assert usage.used_mb.keys() == {wanted.ref.engine_id, absent}
        assert usage.used_mb[absent] == 0
        assert usage.used_mb[wanted.ref.engine_id] <= 1
        assert not usage.at_least
    assert backend.list_volumes() == before
    backend.remove(wanted.ref.engine_id)


def test_create_adopts_instance_on_repeat(backend):
    wanted = spec()
    for expected in (State.CREATED, State.RUNNING, State.EXITED):
        if expected is State.RUNNING:
            backend.start(wanted.ref)
        if expected is State.EXITED:
            backend.stop(wanted.ref, grace_s=10)
        backend.create(wanted)
        assert backend.observe(wanted.ref) is expected
    assert len(backend.list()) == 1


def test_create_moves_port_of_stopped_instance_only(backend):
    wanted = spec()
    backend.create(wanted)
    moved = replace(wanted, port=spec().port)
    backend.create(moved)
    assert backend.list()[0].port == moved.port
    backend.start(wanted.ref)
    backend.create(wanted)
    until(lambda: backend.list()[0].port == moved.port)


def test_create_raises_image_missing_for_unknown_image(runtime):
    wanted = spec(image=runtime.missing_image)
    with pytest.raises(ImageMissing) as raised:
        runtime.backend.create(wanted)
    assert not raised.value.retryable
    assert runtime.backend.observe(wanted.ref) is State.ABSENT
    assert not runtime.has_volume(wanted.ref.engine_id)


def test_create_raises_runtime_missing_and_makes_nothing_in_another(runtime):
    wanted = replace(spec(), runtime="no-such-runtime")
    with pytest.raises(RuntimeMissing, match="no-such-runtime") as raised:
        runtime.backend.create(wanted)
    assert not raised.value.retryable
    assert runtime.backend.observe(wanted.ref) is State.ABSENT
    assert not runtime.has_volume(wanted.ref.engine_id)


def test_start_runs_instance_and_is_harmless_on_repeat(backend):
    wanted = spec()
    backend.create(wanted)
    for _ in range(2):
        backend.start(wanted.ref)
        assert backend.observe(wanted.ref) is State.RUNNING


def test_start_raises_instance_missing_for_unknown_instance(backend):
    wanted = spec()
    with pytest.raises(InstanceMissing):
        backend.start(wanted.ref)
    backend.create(wanted)
    with pytest.raises(InstanceMissing):
        backend.start(Ref(wanted.ref.engine_id, 2))


def test_start_raises_port_taken_for_port_of_another_engine(backend):
    first = spec()
    second = spec(port=first.port)
    backend.create(first)
    backend.create(second)
    backend.start(first.ref)
    with pytest.raises(PortTaken):
        backend.start(second.ref)
    assert backend.observe(second.ref) is State.CREATED
    backend.create(replace(second, port=spec().port))
    backend.start(second.ref)
    assert backend.observe(second.ref) is State.RUNNING


def test_start_refuses_second_incarnation_while_first_runs(backend):
    first = spec()
    second = spec(first.ref.engine_id, 2)
    backend.create(first)
    backend.create(second)
    backend.start(first.ref)
    with pytest.raises(OtherRuns):
        backend.start(second.ref)
    backend.stop(first.ref, grace_s=10)
    backend.start(second.ref)
    assert backend.observe(first.ref) in (State.EXITED, State.ABSENT)
    assert backend.observe(second.ref) is State.RUNNING


def test_start_runs_one_instance_when_called_by_many_threads(backend):
    engine_id = uuid4()
    specs = [spec(engine_id, number) for number in (1, 2, 3, 4)]
    for wanted in specs:
        backend.create(wanted)

    def start(wanted):
        try:
            backend.start(wanted.ref)
        except BackendError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        started = list(pool.map(start, specs * 2))
    assert sum(found.state is State.RUNNING for found in backend.list()) == 1
    assert 1 <= sum(started) <= 2


def test_stop_ends_instance_and_keeps_volume(runtime):
    wanted = spec()
    runtime.backend.create(wanted)
    runtime.backend.start(wanted.ref)
    for _ in range(2):
        runtime.backend.stop(wanted.ref, grace_s=10)
        assert runtime.backend.observe(wanted.ref) is State.EXITED
    assert runtime.has_volume(wanted.ref.engine_id)
    runtime.backend.start(wanted.ref)
    assert runtime.backend.observe(wanted.ref) is State.RUNNING


def test_stop_leaves_absent_and_unstarted_instances(backend):
    wanted = spec()
    backend.stop(wanted.ref, grace_s=10)
    assert backend.observe(wanted.ref) is State.ABSENT
    backend.create(wanted)
    backend.stop(wanted.ref, grace_s=10)
    assert backend.observe(wanted.ref) is State.CREATED


def test_destroy_removes_one_incarnation_and_keeps_volume(runtime):
    first = spec()
    second = spec(first.ref.engine_id, 2)
    runtime.backend.create(first)
    runtime.backend.create(second)
    runtime.backend.start(first.ref)
    for _ in range(2):
        runtime.backend.destroy(first.ref)
        assert runtime.backend.observe(first.ref) is State.ABSENT
        assert runtime.backend.logs(first.ref, tail=5) == []
    assert [found.ref for found in runtime.backend.list()] == [second.ref]
    assert runtime.has_volume(first.ref.engine_id)
    with pytest.raises(InstanceMissing):
        runtime.backend.start(first.ref)


def test_remove_leaves_nothing_of_the_engine(runtime):
    first, other = spec(), spec()
    for wanted in (first, spec(first.ref.engine_id, 2), other):
        runtime.backend.create(wanted)
    runtime.backend.start(first.ref)
    for _ in range(2):
        runtime.backend.remove(first.ref.engine_id)
        assert [found.ref for found in runtime.backend.list()] == [other.ref]
        assert not runtime.has_volume(first.ref.engine_id)
    assert runtime.backend.observe(first.ref) is State.ABSENT


def test_list_shows_instance_that_stale_worker_made_after_remove(backend):
    wanted = spec()
    backend.create(wanted)
    backend.remove(wanted.ref.engine_id)
    backend.create(wanted)
    backend.start(wanted.ref)
    (found,) = backend.list()
    assert (found.ref, found.state) == (wanted.ref, State.RUNNING)


def test_list_is_empty_without_instances(backend):
    assert list(backend.list()) == []
    assert list(backend.list(uuid4())) == []


def test_list_of_one_engine_shows_its_running_instance_at_its_port_only(backend):
    mine, other = spec(), spec()
    for wanted in (mine, other):
        backend.create(wanted)
    (found,) = backend.list(mine.ref.engine_id)
    assert not found.serves(mine.ref, mine.port)  # was not started yet
    backend.start(mine.ref)
    found = until(lambda: next((each for each in backend.list(mine.ref.engine_id) if each.serves(mine.ref, mine.port)), None))
    assert not found.serves(mine.ref, other.port)
    assert not found.serves(other.ref, mine.port)
    backend.stop(mine.ref, grace_s=10)
    (found,) = backend.list(mine.ref.engine_id)
    assert not found.serves(mine.ref, mine.port)


def test_logs_are_last_lines_oldest_first(backend):
    wanted = spec()
    assert backend.logs(wanted.ref, tail=5) == []
    backend.create(wanted)
    assert backend.logs(wanted.ref, tail=5) == []
    backend.start(wanted.ref)
    until(lambda: backend.logs(wanted.ref, tail=1))
    backend.stop(wanted.ref, grace_s=10)
    lines = backend.logs(wanted.ref, tail=100)
    assert len(lines) >= 2
    assert backend.logs(wanted.ref, tail=1) == lines[-1:]
    assert backend.logs(wanted.ref, tail=0) == []


def test_stop_all_stops_every_running_instance(backend):
    specs = [spec() for _ in range(4)]
    for wanted in specs:
        backend.create(wanted)
    for wanted in specs[:3]:
        backend.start(wanted.ref)
    assert stop_all(backend, grace_s=10) == []
    states = [backend.observe(wanted.ref) for wanted in specs]
    assert states == [State.EXITED, State.EXITED, State.EXITED, State.CREATED]


def another_key(wanted):
    return replace(wanted, env={**wanted.env, "ENGINE_KEY_HASH": "0" * 64})


@pytest.mark.parametrize("state", [State.CREATED, State.RUNNING])
def test_create_adopts_no_instance_that_differs_and_leaves_it_as_it_is(backend, state):
    wanted = spec()
    backend.create(wanted)
    if state is State.RUNNING:
        backend.start(wanted.ref)
    for other, part in ((another_key(wanted), "key"), (replace(wanted, env={**wanted.env, "PASSED": "on"}), "environment")):
        assert list(backend.differing(backend.list()[0], other)) == [part]
        with pytest.raises(InstanceDiffers, match=f"differs in {part}$") as raised:
            backend.create(other)
        assert raised.value.retryable
    assert backend.observe(wanted.ref) is state
    backend.destroy(wanted.ref)
    assert backend.create(another_key(wanted)).is_new


def test_differing_finds_nothing_for_what_a_policy_moves(backend):
    wanted = spec()
    backend.create(wanted)
    policy_now = replace(wanted, port=spec().port, limits=Limits(cpus=0.5, pids=17, disk_mb=9), egress="none")
    assert list(backend.differing(backend.list()[0], policy_now)) == []
    assert not backend.create(replace(wanted, limits=Limits(cpus=0.5))).is_new


def test_two_incarnations_with_one_number_are_two_instances(runtime):
    backend, first = runtime.backend, spec()
    second = replace(first, ref=replace(first.ref, token="5f0c9a1be7d3"))
    backend.create(first)
    assert backend.create(another_key(second)).is_new
    backend.start(first.ref)
    assert (backend.observe(first.ref), backend.observe(second.ref)) == (State.RUNNING, State.CREATED)
    with pytest.raises(OtherRuns):
        backend.start(second.ref)
    backend.destroy(first.ref)
    backend.start(second.ref)
    assert [(found.ref, found.state) for found in backend.list()] == [(second.ref, State.RUNNING)]


def test_retire_removes_all_instances_but_those_named_and_keeps_the_volume(runtime):
    backend, kept, other = runtime.backend, spec(), spec()
    unknown = spec(kept.ref.engine_id, 2)
    for wanted in (kept, unknown, other):
        backend.create(wanted)
    backend.start(unknown.ref)
    assert backend.retire(kept.ref.engine_id, but=[kept.ref], grace_s=10) == [unknown.ref]
    assert backend.retire(kept.ref.engine_id, but=[kept.ref], grace_s=10) == []
    assert {found.ref for found in backend.list()} == {kept.ref, other.ref}
    assert backend.retire(kept.ref.engine_id, grace_s=10) == [kept.ref]
    assert backend.retire(uuid4(), grace_s=10) == []
    assert runtime.has_volume(kept.ref.engine_id)
    backend.remove(kept.ref.engine_id)
