import pytest

from engines.backends.base import BackendUnavailable, PortTaken, State
from engines.backends.memory import MemoryBackend
from engines.backends.shutdown import stop_all
from tests.engines.backends.runtimes import spec


@pytest.fixture
def backend() -> MemoryBackend:
    return MemoryBackend()


def test_fail_next_raises_once_and_changes_nothing(backend):
    wanted = spec()
    backend.create(wanted)
    backend.fail_next("start", PortTaken("asked for"))
    backend.fail_next("start", BackendUnavailable("asked for"))
    for error in (PortTaken, BackendUnavailable):
        with pytest.raises(error):
            backend.start(wanted.ref)
        assert backend.observe(wanted.ref) is State.CREATED
    backend.start(wanted.ref)
    assert backend.observe(wanted.ref) is State.RUNNING


def test_unavailable_is_unknown_to_observe_and_an_error_to_the_rest(backend):
    wanted = spec()
    backend.create(wanted)
    backend.unavailable = True
    assert backend.observe(wanted.ref) is State.UNKNOWN
    for verb in (backend.list, lambda: backend.start(wanted.ref), lambda: backend.remove(wanted.ref.engine_id)):
        with pytest.raises(BackendUnavailable):
            verb()
    backend.unavailable = False
    assert backend.observe(wanted.ref) is State.CREATED


def test_exit_ends_a_running_instance_only(backend):
    wanted = spec()
    backend.create(wanted)
    backend.exit(wanted.ref)
    assert backend.observe(wanted.ref) is State.CREATED
    backend.start(wanted.ref)
    backend.exit(wanted.ref)
    assert backend.observe(wanted.ref) is State.EXITED


def test_stop_all_names_what_it_could_not_stop(backend):
    wanted = spec()
    backend.create(wanted)
    backend.start(wanted.ref)
    backend.fail_next("stop", BackendUnavailable("asked for"))
    assert stop_all(backend, grace_s=1) == [wanted.ref]
