"""The Docker backend under a daemon that dies, hangs, comes back and runs out of disk."""

import signal
import subprocess
import threading
from dataclasses import replace
from pathlib import Path

import docker
import pytest
from django.db.models.functions import Now
from django.test import Client

from audit.models import AuditRow
from engines import backends, health, reconcile
from engines.backends.base import BackendUnavailable, DiskFull, PortTaken, RuntimeMissing, State
from engines.backends.docker import DockerBackend, containers
from engines.models import Engine, Operation
from tests.engines.backends import dock
from tests.engines.backends.dockerd import Dockerd, is_root
from tests.engines.backends.runtimes import IMAGE, spec, try_
from tests.engines.registry import put_engine
from tests.staff import log_in
from tests.waiting import until

pytestmark = pytest.mark.skipif(not is_root(), reason="starts a Docker daemon")


@pytest.fixture(scope="module")
def dockerd(client):
    daemon = Dockerd("--add-runtime", "other=runc", "--add-runtime", "broken=/no/such/runtime")
    try:
        daemon.load(client)
        yield daemon
    finally:
        daemon.close()


@pytest.fixture
def backend(dockerd):
    with dock.deployed(dockerd.client, url=dockerd.url, timeout_s=5) as backend:
        yield backend


def started(backend):
    wanted = spec()
    backend.create(wanted)
    backend.start(wanted.ref)
    return wanted


def carry_out(backend, verb, wanted):
    """Bring the verb about as a worker does: attempt after attempt, each from its beginning, a taken port exchanged."""

    def attempt():
        nonlocal wanted
        refused = try_(*([verbs(backend, wanted)["create"]] if verb == "start" else []), verbs(backend, wanted)[verb])
        if isinstance(refused, PortTaken):  # a daemon killed in the middle of a start remembers its ports
            wanted = replace(wanted, port=spec().port)
        else:
            assert refused is None or refused.retryable, refused
        return refused is None

    until(attempt, 30)


def verbs(backend, wanted):
    return {
        "create": lambda: backend.create(wanted),
        "start": lambda: backend.start(wanted.ref),
        "stop": lambda: backend.stop(wanted.ref, grace_s=3),
        "destroy": lambda: backend.destroy(wanted.ref),
        "remove": lambda: backend.remove(wanted.ref.engine_id),
    }


AFTER = {"create": State.CREATED, "start": State.RUNNING, "stop": State.EXITED, "destroy": State.ABSENT, "remove": State.ABSENT}


def test_engines_are_unknown_while_the_daemon_is_gone_and_known_again_after(dockerd, backend):
    wanted = started(backend)
    identity = backend.identity()
    assert backend.identity() == identity
    dockerd.kill()
    assert backend.observe(wanted.ref) is State.UNKNOWN
    for verb in (backend.list, backend.identity, *verbs(backend, wanted).values()):
        with pytest.raises(BackendUnavailable):
            verb()
    dockerd.start()
    assert backend.identity() != identity
    assert backend.observe(wanted.ref) is State.EXITED  # Docker ends what ran when it comes back
    backend.start(wanted.ref)
    assert backend.observe(wanted.ref) is State.RUNNING
    assert dockerd.client.containers.get(backend._guard.name).status == "running"


@pytest.fixture
def fleet(dockerd, backend, product, settings):
    """This process's backend is that daemon's, for the length of the test."""
    usual, options = settings.ENV, backend.options
    chosen = {"engine_backend": "docker", "docker_url": dockerd.url, "deployment": options.deployment}
    settings.ENV = usual.model_copy(update={**chosen, "engine_network": options.network, "backend_timeout_s": 5})
    backends.get.cache_clear()
    yield product
    settings.ENV = usual
    backends.get.cache_clear()


def test_no_restart_is_due_while_the_daemon_is_gone(dockerd, fleet):
    reconcile.host_is_settled()
    engine = put_engine(fleet, status="failed", next_restart_at=Now())
    dockerd.kill()
    assert health.restart_due() == 0
    assert not AuditRow.objects.filter(action="auto_restart_start").exists()
    engine.refresh_from_db()
    assert (engine.restart_attempts, engine.next_restart_at is None) == (0, False)
    dockerd.start()
    assert health.restart_due() == 0  # first what should run is resumed
    assert health.restart_due() == 1
    assert AuditRow.objects.get(action="auto_restart_start").metadata == {"restart": 1}


def test_engines_that_fail_their_probes_are_unknown_while_the_daemon_is_gone(dockerd, fleet, settings):
    """The daemon's containers live on in a namespace of their own, where no probe gets to."""
    reconcile.host_is_settled()
    engine = put_engine(fleet)
    wanted = spec(engine.pk, port=engine.port)
    backends.get().create(wanted)
    backends.get().start(wanted.ref)
    staff, public = log_in("mona"), Client()
    line = "The runtime of host local has not answered since"
    assert line not in staff.get("/admin/").text
    dockerd.kill()
    for _ in range(settings.ENV.health_max_failures + 1):
        Engine.objects.update(next_probe_at=Now())
        assert health.probe_due() == 1
    engine.refresh_from_db()
    assert (engine.status, engine.health_failures, engine.restart_attempts, engine.next_restart_at) == ("running", 0, 0, None)
    assert not Operation.objects.exists()
    assert not AuditRow.objects.filter(engine_id=engine.pk).exists()
    assert public.get("/health").json()["hosts"] == "engines unknown on 1 hosts"
    assert [away["name"] for away in public.get("/health").json()["unreachable_hosts"]] == ["local"]
    assert staff.get("/admin/").text.count(line) == 1
    dockerd.start()
    assert not reconcile.host_is_settled()  # first what should run is resumed
    assert [(resumed.engine_id, resumed.kind) for resumed in Operation.objects.all()] == [(engine.pk, "restart")]
    assert reconcile.host_is_settled()
    assert public.get("/health").json()["hosts"] == "ok"
    assert line not in staff.get("/admin/").text


def test_identity_changes_when_the_daemon_is_started_again_in_good_order(dockerd, backend):
    before = backend.identity()
    dockerd.process.terminate()
    dockerd.process.wait(20)
    dockerd.start()
    assert backend.identity() != before


def test_identity_of_a_daemon_without_a_default_network_is_that_of_its_guard(client):
    daemon = Dockerd("--bridge=none")
    try:
        daemon.load(client)
        with dock.deployed(daemon.client, url=daemon.url, timeout_s=10) as backend:
            assert backend.identity() == ""
            started(backend)
            before = backend.identity()
            assert before == daemon.client.containers.get(backend._guard.name).attrs["State"]["StartedAt"]
            daemon.kill()
            daemon.start()
            until(lambda: backend.identity() not in ("", before))
    finally:
        daemon.close()


# -- container runtimes ------------------------------------------------------------------------------------------------


def test_engine_runs_in_the_runtime_of_its_spec(dockerd, backend):
    """The runtime is runc under another name."""
    wanted = replace(spec(), runtime="other")
    backend.create(wanted)
    backend.start(wanted.ref)
    assert dock.container_of(dockerd.client, backend, wanted.ref).attrs["HostConfig"]["Runtime"] == "other"
    assert backend.observe(wanted.ref) is State.RUNNING


def test_start_refuses_a_runtime_whose_program_is_gone(backend):
    wanted = replace(spec(), runtime="broken")
    backend.create(wanted)
    with pytest.raises(RuntimeMissing, match="/no/such/runtime"):
        backend.start(wanted.ref)
    assert backend.observe(wanted.ref) is not State.RUNNING


def test_start_refuses_a_runtime_that_the_daemon_has_no_more(dockerd, backend):
    wanted = replace(spec(), runtime="other")
    backend.create(wanted)
    usual = dockerd.flags
    restart(dockerd)
    try:
        with pytest.raises(RuntimeMissing, match="other"):
            backend.start(wanted.ref)
        assert backend.observe(wanted.ref) is State.CREATED
    finally:
        restart(dockerd, *usual)
    backend.start(wanted.ref)


def restart(dockerd, *flags):
    """End the daemon in good order, and start it with other flags."""
    dockerd.process.terminate()
    dockerd.process.wait(20)
    dockerd.flags = flags
    dockerd.start()


def is_stopped(pid):
    """Whether every thread of the process has come to a stop."""
    stats = [(task / "stat").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    return all(stat.rpartition(")")[2].split()[0] == "T" for stat in stats)


def test_verbs_end_at_their_deadline_while_the_daemon_is_frozen(dockerd, backend):
    wanted = started(backend)
    hasty = DockerBackend(replace(backend.options, timeout_s=0.5))
    assert hasty.observe(wanted.ref) is State.RUNNING
    dockerd.process.send_signal(signal.SIGSTOP)
    until(lambda: is_stopped(dockerd.process.pid))
    try:
        assert hasty.observe(wanted.ref) is State.UNKNOWN
        for verb in verbs(hasty, wanted).values():
            with pytest.raises(BackendUnavailable):
                verb()
    finally:
        dockerd.process.send_signal(signal.SIGCONT)
    until(lambda: backend.observe(wanted.ref) is not State.UNKNOWN)
    carry_out(backend, "remove", wanted)


@pytest.mark.parametrize("verb", AFTER)
def test_verb_is_repeated_to_its_end_after_the_daemon_was_killed_in_its_middle(dockerd, backend, verb):
    wanted = spec()
    if verb != "create":
        backend.create(wanted)
    backend.start(spec_of_another(backend))  # the guard is up
    if verb in ("stop", "destroy", "remove"):
        backend.start(wanted.ref)
    begun, refused = threading.Event(), []

    def act():
        begun.set()
        refused.append(try_(verbs(backend, wanted)[verb]))

    worker = threading.Thread(target=act)
    worker.start()
    begun.wait()
    threading.Event().wait(0.03)  # in the middle, or just before or after it
    dockerd.kill()
    worker.join()
    assert isinstance(refused[0], BackendUnavailable | None)
    dockerd.start()
    carry_out(backend, verb, wanted)
    assert backend.observe(wanted.ref) is AFTER[verb]
    assert dock.has_volume(dockerd.client, wanted.ref.engine_id) is (verb != "remove")
    mine = [found for found in backend.list() if found.ref.engine_id == wanted.ref.engine_id]
    assert len(mine) == (0 if verb in ("destroy", "remove") else 1)


def spec_of_another(backend):
    other = spec()
    backend.create(other)
    return other.ref


def test_create_raises_disk_full_and_works_again_when_there_is_room(dockerd, backend):
    started(backend)
    ballast = dockerd.data / "ballast"
    wanted = spec()
    try:
        fill(ballast)
        assert isinstance(try_(*(verbs(backend, wanted)[verb] for verb in ("create", "start"))), DiskFull)
    finally:
        ballast.unlink()
    assert backend.observe(wanted.ref) in (State.ABSENT, State.CREATED)
    backend.create(wanted)
    backend.start(wanted.ref)
    assert backend.observe(wanted.ref) is State.RUNNING


def fill(path):
    """Write to the file until there is no space left."""
    written = subprocess.run(["dd", "if=/dev/zero", f"of={path}", "bs=64k"], capture_output=True, check=False)
    assert b"No space left" in written.stderr


# -- names that the daemon does not let go of --------------------------------------------------------------------------


def test_create_takes_another_name_where_the_daemon_keeps_that_of_a_container_that_is_gone(dockerd, backend):
    wanted = spec()
    name = containers.spare_name(backend.options.deployment, wanted.ref)
    lose(dockerd, name)
    with pytest.raises(docker.errors.APIError, match="already in use"):
        dockerd.client.containers.create(IMAGE, name=name)
    with pytest.raises(docker.errors.NotFound):
        dockerd.client.containers.get(name).remove()
    backend.create(wanted)
    backend.start(wanted.ref)
    assert backend.observe(wanted.ref) is State.RUNNING
    backend.destroy(wanted.ref)
    assert backend.list() == []


def lose(dockerd, name):
    """Have the daemon keep a name without a container: a container's making fails, and its folder cannot be removed again.

    In an append-only folder the daemon can make the container's folder, and cannot remove the container's folder.
    """
    held, folder = dockerd.folder / "held", str(dockerd.folder / "data/containers")
    held.mkdir()
    mounted = ["nsenter", "-t", str(dockerd.pid), "--mount"]
    subprocess.run(["chattr", "+a", held], check=True)
    subprocess.run([*mounted, "mount", "--bind", held, folder], check=True)
    try:
        with pytest.raises(docker.errors.APIError, match="no-such-container"):
            dockerd.client.containers.create(IMAGE, name=name, links={"no-such-container": "peer"})
    finally:
        subprocess.run([*mounted, "umount", folder], check=True)
        subprocess.run(["chattr", "-a", held], check=True)
