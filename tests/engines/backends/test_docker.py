"""What only the Docker backend promises: hardened containers, named errors, verbs that outlast a vandal."""

import json
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from uuid import UUID, uuid4

import docker
import pytest

from engines.backends import log_text
from engines.backends.base import (
    BackendError,
    BackendUnavailable,
    ImageMissing,
    ImageUnfit,
    InstanceMissing,
    Limits,
    PortTaken,
    State,
    instance_name,
)
from engines.backends.docker import DockerBackend, Options, containers, log_reader, seccomp, volumes, write_limits
from tests.engines.backends import dock, ordinary_work, system_calls
from tests.engines.backends.runtimes import IMAGE, USER, call, execute, free_port, is_healthy, spec, try_
from tests.waiting import now, passed, until

MB = 1024 * 1024


def started(backend, **details):
    wanted = spec(**details)
    backend.create(wanted)
    backend.start(wanted.ref)
    return wanted


# -- what a container is -----------------------------------------------------------------------------------------------


def test_create_hardens_container_by_default(client, docked):
    wanted = started(docked)
    attributes = dock.container_of(client, docked, wanted.ref).attrs
    host, config = attributes["HostConfig"], attributes["Config"]
    assert host["CapDrop"] == ["ALL"]
    assert not host["CapAdd"]
    assert host["SecurityOpt"] == ["no-new-privileges", seccomp.OPTION]
    assert host["Runtime"] == "runc"
    assert not host["Privileged"]
    assert host["ReadonlyRootfs"]
    assert list(host["Tmpfs"]) == ["/tmp"]
    assert config["User"] == "10001:10001"
    assert host["RestartPolicy"]["Name"] == "no"
    assert host["LogConfig"] == {"Type": "json-file", "Config": {"max-size": "10m", "max-file": "2"}}
    assert (host["Memory"], host["MemorySwap"]) == (128 * MB, 128 * MB)
    assert (host["NanoCpus"], host["PidsLimit"]) == (1_000_000_000, 64)
    assert host["PidMode"] == host["UTSMode"] == ""
    assert host["IpcMode"] == host["CgroupnsMode"] == "private"
    limits = {limit["Name"]: (limit["Soft"], limit["Hard"]) for limit in host["Ulimits"]}
    assert limits == {"nofile": (16_384, 16_384), "core": (0, 0), "fsize": (1024 * MB, 1024 * MB)}
    assert (host["OomScoreAdj"], host["CpuShares"]) == (500, 256)
    assert config["StopSignal"] == "SIGTERM"
    assert not host["Binds"]
    assert not config.get("MacAddress")  # Docker's own, which goes with the IP address


def test_create_limits_an_engines_writes_where_the_kernel_sees_them(client, docked):
    wanted = started(docked)
    with docked._daemon.verb("test"):
        device = docked._guard.disk()
    assert Path(device).is_block_device()
    asked = write_limits.config(device, docked.options.write_mb_s)
    made = dock.container_of(client, docked, wanted.ref).attrs["HostConfig"]
    seen = asked if client.info()["CgroupVersion"] == "2" else {}
    assert {key: made[key] for key in asked if made[key]} == seen
    network = made["NetworkMode"]
    directly = containers.config(spec(), network, docked.options, write_limits=asked)
    other = client.api.create_container_from_config(directly)["Id"]
    assert client.api.inspect_container(other)["HostConfig"].items() >= asked.items()
    docked.remove(UUID(directly["Labels"][containers.ENGINE]))
    assert write_limits.config("", 50) == {}


def test_create_labels_container_and_volume(client, docked):
    wanted = started(docked)
    container = dock.container_of(client, docked, wanted.ref)
    mine = {containers.DEPLOYMENT: docked.options.deployment, containers.ENGINE: str(wanted.ref.engine_id)}
    mine |= {containers.PRODUCT: "acme", containers.USER: USER}
    assert container.labels.items() >= {**mine, containers.IMAGE: IMAGE, containers.INCARNATION: "1"}.items()
    assert client.volumes.get(f"engine-data-{wanted.ref.engine_id}").attrs["Labels"] == mine
    mounts = [(mount["Type"], mount["Destination"], mount["RW"]) for mount in container.attrs["Mounts"]]
    assert mounts == [("volume", "/data", True)]


def test_create_takes_the_lower_of_two_limits(client, docked):
    wanted = replace(spec(), limits=Limits(memory_mb=64, cpus=0.5, pids=1_000))
    docked.create(wanted)
    host = dock.container_of(client, docked, wanted.ref).attrs["HostConfig"]
    assert (host["Memory"], host["NanoCpus"], host["PidsLimit"]) == (64 * MB, 500_000_000, 64)


def test_engine_has_no_rights_but_writes_its_volume_and_tmp(client, docked):
    wanted = started(docked)
    look = """
import json, os
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
def writes(path):
    try:
        open(path, "w").close()
    except OSError as error:
        return error.strerror
    return True
limits = {line[:26].strip(): line[26:].split()[:2] for line in open("/proc/1/limits")}
groups = {line.rstrip().split(":", 2)[2] for line in open("/proc/1/cgroup")}
shared = [open("/proc/1/oom_score_adj").read().strip(), limits["Max open files"], limits["Max core file size"], sorted(groups)]
print(json.dumps([shared, os.getuid(), os.getgid(), status["CapBnd"], status["NoNewPrivs"], status["Seccomp"],
                  *map(writes, ("/data/x", "/tmp/x", "/engine/x", "/etc/x", "/proc/sys/kernel/hostname"))]))
"""
    seen = json.loads(dock.run_inside(dock.container_of(client, docked, wanted.ref), look))
    assert seen.pop(0) == ["500", ["16384", "16384"], ["0", "0"], ["/"]]
    assert seen[:5] == [10001, 10001, "0000000000000000", "1", "2"]
    assert seen[5:7] == [True, True]
    assert True not in seen[7:]


# Without a filter the kernel refuses these calls for missing rights, too.
NEED_RIGHTS = {
    "bpf", "pivot_root", "move_mount", "fsopen", "fsmount", "fspick", "fanotify_init", "acct", "swapon", "swapoff", "reboot",
    "sethostname", "setdomainname", "settimeofday", "syslog", "vhangup", "socket, AF_PACKET", "socket, family 44",
}  # fmt: skip


def test_engine_may_make_no_system_call_that_it_has_no_need_of(client, docked):
    program = Path(system_calls.__file__).read_text()
    wanted = started(docked)
    seen = json.loads(dock.run_inside(dock.container_of(client, docked, wanted.ref), program))
    assert {name: said for name, said in seen["refused"].items() if said != "EPERM"} == {}
    assert {name: said for name, said in seen["unknown"].items() if said != "ENOSYS"} == {}
    assert set(seen["foreign"].values()) <= {"SIGSYS", "ENOSYS"}

    # The same calls in a container without the filter: there they are refused for their arguments, if at all.
    bare = {"security_opt": ["no-new-privileges", "seccomp=unconfined"], "cap_drop": ["ALL"], "user": docked.options.user}
    free = json.loads(client.containers.run(IMAGE, entrypoint=["python3", "-c", program], remove=True, **bare))
    assert {name for name, said in free["refused"].items() if said == "EPERM"} <= NEED_RIGHTS


def test_engine_may_do_what_programs_do(client, docked):
    wanted = started(docked)
    program = Path(ordinary_work.__file__).read_text()
    assert dock.run_inside(dock.container_of(client, docked, wanted.ref), program).split() == ["all", "done"]


def test_engine_gets_environment_catalog_and_published_port(client, tmp_path):
    (tmp_path / "catalog.txt").write_text("models")
    tmp_path.chmod(0o755)
    with dock.deployed(client, catalog=str(tmp_path)) as backend:
        wanted = started(backend, EXTRA="passed on")
        container = dock.container_of(client, backend, wanted.ref)
        env = set(container.attrs["Config"]["Env"])
        assert env >= {"SQLITE_DB_PATH=/data/brain.sqlite", "CATALOG_DIR=/catalog", "EXTRA=passed on"}
        assert dock.run_inside(container, "print(open('/catalog/catalog.txt').read())").strip() == "models"
        assert "Read-only" in dock.run_inside(container, "open('/catalog/catalog.txt', 'w')")
        assert container.ports == {"8000/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(wanted.port)}]}
        until(lambda: is_healthy(wanted.port))


def test_volume_survives_stop_and_new_incarnation(docked):
    first = started(docked)
    until(lambda: is_healthy(first.port))
    execute(first.port, {"input": "one"})
    docked.stop(first.ref, grace_s=10)
    second = started(docked, engine_id=first.ref.engine_id, incarnation=2)
    until(lambda: is_healthy(second.port))
    assert execute(second.port, {"input": "two"})[-1][1]["counter"] == 2
    assert call(second.port, "GET", "/counter")[1]["boots"] == 2


def test_remove_says_who_holds_on_to_the_volume(client):
    with dock.deployed(client, timeout_s=2) as backend:
        wanted = spec()
        backend.create(wanted)
        volume = volumes.name(wanted.ref.engine_id)
        other = client.containers.create(IMAGE, volumes={volume: {"bind": "/backup"}})
        try:
            with pytest.raises(BackendUnavailable, match=f"volume is in use - .{other.id}"):
                backend.remove(wanted.ref.engine_id)
        finally:
            other.remove()
        backend.remove(wanted.ref.engine_id)
        assert backend.list_volumes() == {}


def test_remove_leaves_the_volume_of_another_deployment(client, docked):
    """The copy of a database has the ids of the original's engines, and with the ids the names of their volumes."""
    engine_id = uuid4()
    volume = client.volumes.create(f"engine-data-{engine_id}", labels={containers.DEPLOYMENT: "the-original"})
    try:
        docked.remove(engine_id)
        assert client.volumes.get(volume.id)
    finally:
        volume.remove()


def test_remove_goes_on_soon_after_the_volume_is_free(client, docked):
    wanted = spec()
    docked.create(wanted)
    other = client.containers.create(IMAGE, volumes={volumes.name(wanted.ref.engine_id): {"bind": "/backup"}})
    freed: list[float] = []

    def free():
        other.remove()
        freed.append(now())

    holder = threading.Timer(0.6, free)
    holder.start()
    docked.remove(wanted.ref.engine_id)
    holder.join()
    assert not passed(freed[0], 2.0)
    assert not dock.has_volume(client, wanted.ref.engine_id)


def test_stop_lets_engine_drain_and_kills_it_after_the_grace(docked):
    wanted = started(docked)
    until(lambda: is_healthy(wanted.port))
    docked.stop(wanted.ref, grace_s=10)
    assert docked.logs(wanted.ref, tail=1) == ["engine ended"]
    docked.start(wanted.ref)
    until(lambda: is_healthy(wanted.port))
    call(wanted.port, "POST", "/faults", {"mode": "busy"})
    docked.stop(wanted.ref, grace_s=1)
    assert docked.observe(wanted.ref) is State.EXITED
    assert "drains, 1 turns" in docked.logs(wanted.ref, tail=1)[0]


# -- who sees what -----------------------------------------------------------------------------------------------------


def test_list_shows_own_deployment_only(client, docked):
    wanted = spec()
    docked.create(wanted)
    with dock.deployed(client) as stranger:
        assert stranger.list() == []
        assert stranger.observe(wanted.ref) is State.ABSENT
        stranger.destroy(wanted.ref)
    assert [found.ref for found in docked.list()] == [wanted.ref]


def test_create_replaces_a_container_that_only_has_the_name(client, docked):
    wanted = spec()
    for name in (
        containers.spare_name(docked.options.deployment, wanted.ref),
        instance_name(docked.options.deployment, wanted.ref.engine_id),
    ):
        client.containers.create(IMAGE, name=name)
    docked.create(wanted)
    docked.start(wanted.ref)
    assert docked.observe(wanted.ref) is State.RUNNING


def test_create_adopts_the_container_of_a_worker_that_was_faster(docked):
    wanted = spec()
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(docked.create, [wanted] * 6))
    assert [found.ref for found in docked.list()] == [wanted.ref]


def test_verbs_see_one_instance_where_a_late_worker_made_a_second_container(docked):
    wanted = started(docked)
    docked._make(wanted)  # it had looked before the first one was there
    assert docked.observe(wanted.ref) is State.RUNNING
    docked.start(wanted.ref)
    docked.stop(wanted.ref, grace_s=5)
    assert docked.observe(wanted.ref) is State.EXITED
    docked.start(wanted.ref)
    docked.destroy(wanted.ref)
    assert docked.list() == []


def test_start_never_runs_two_incarnations_whoever_starts_them(client, docked):
    """Several backends, as in several workers: nothing in one process can decide it."""
    engine_id, most = uuid.uuid4(), 0
    specs = [spec(engine_id, number) for number in (1, 2, 3)]
    workers = [DockerBackend(docked.options) for _ in specs]
    over = threading.Event()

    def watch():
        nonlocal most
        mine = {"label": containers.engine_labels(docked.options.deployment, engine_id), "status": "running"}
        while not over.is_set():
            most = max(most, len(client.api.containers(filters=mine)))

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(4):
        for wanted in specs:
            docked.create(wanted)
        with ThreadPoolExecutor(6) as pool:
            results = list(pool.map(_start, workers * 2, specs * 2))
        assert None in results, results
        assert sum(found.state is State.RUNNING for found in docked.list()) == 1
        for wanted in specs:
            docked.stop(wanted.ref, grace_s=0)
    over.set()
    watcher.join()
    assert most == 1


def _start(backend, wanted):
    return try_(lambda: backend.start(wanted.ref))


# -- named errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image", ["no-such-image:1", "Not An Image", "sha256:" + "0" * 64])
def test_create_raises_image_missing(client, docked, image):
    wanted = spec(image=image)
    with pytest.raises(ImageMissing):
        docked.create(wanted)
    with pytest.raises(ImageMissing):
        docked.resolve(image)
    assert not dock.has_volume(client, wanted.ref.engine_id)


def test_resolve_names_what_create_takes(docked):
    wanted = spec(image=docked.resolve(IMAGE))
    docked.create(wanted)
    assert docked.resolve(wanted.image) == wanted.image


def test_start_raises_port_taken_and_moves_on(docked):
    """The port is held by a process of the host, which Docker does not know of."""
    wanted = spec()
    docked.create(wanted)
    with dock.listening(wanted.port):
        for _ in range(2):
            with pytest.raises(PortTaken):
                docked.start(wanted.ref)
        assert docked.observe(wanted.ref) is State.CREATED
        docked.create(replace(wanted, port=free_port()))
        docked.start(wanted.ref)
    assert docked.observe(wanted.ref) is State.RUNNING


def test_start_leaves_nothing_running_for_image_without_a_program(client, docked):
    wanted = spec(image=dock.build(client, 'FROM roundhouse-demo-engine\nENTRYPOINT ["/no/such/program"]'))
    docked.create(wanted)
    assert type(_start(docked, wanted)) in (BackendError, type(None))  # the daemon's init program may be there and fail instead
    until(lambda: docked.observe(wanted.ref) in (State.CREATED, State.EXITED))
    docked.remove(wanted.ref.engine_id)
    client.images.remove(wanted.image)


def test_verbs_raise_backend_unavailable_without_a_daemon(tmp_path):
    backend = DockerBackend(Options(url=f"unix://{tmp_path}/docker.sock", timeout_s=5))
    wanted = spec()
    assert backend.observe(wanted.ref) is State.UNKNOWN
    for verb in (
        backend.list,
        backend.identity,
        backend.tidy,
        lambda: backend.create(wanted),
        lambda: backend.start(wanted.ref),
        lambda: backend.stop(wanted.ref, grace_s=1),
        lambda: backend.destroy(wanted.ref),
        lambda: backend.remove(wanted.ref.engine_id),
        lambda: backend.logs(wanted.ref, tail=1),
        lambda: backend.resolve(IMAGE),
    ):
        with pytest.raises(BackendUnavailable):
            verb()


# -- removed by hand in the middle -------------------------------------------------------------------------------------


def test_start_asks_for_a_new_container_when_its_own_was_removed(client, docked):
    wanted = spec()
    docked.create(wanted)
    dock.container_of(client, docked, wanted.ref).remove(force=True)
    with pytest.raises(InstanceMissing) as raised:
        docked.start(wanted.ref)
    assert raised.value.retryable
    docked.create(wanted)
    docked.start(wanted.ref)
    assert docked.observe(wanted.ref) is State.RUNNING


@pytest.mark.parametrize("line", ['LABEL {}=""', 'ENTRYPOINT ["{}"]', 'CMD ["{}"]'])
def test_create_refuses_an_image_that_would_swell_every_list_of_containers(client, docked, line):
    image = dock.build(client, f"FROM {IMAGE}\n{line.format('x' * (containers.MOST_REPEATED + 1))}")
    with pytest.raises(ImageUnfit, match=f"^image {image}: the names of labels and the command exceed"):
        docked.create(spec(image=image))
    assert docked.list() == []
    client.images.remove(image)


WRITES = r"""
import sys
sys.stdout.buffer.write(b"first\n" + b"x" * 6_000_000 + b"\nsecond \x1b[31m\xff\rthird\n" + b"\n" * 2_000 + b"last\n")
"""


def test_logs_are_read_within_a_bound_whatever_an_engine_writes(client):
    writer = client.containers.create(IMAGE, entrypoint=["python", "-c", WRITES])
    try:
        writer.start()
        writer.wait()
        read = {tail: log_reader.read(client.api, writer.id, tail) for tail in (1, 2_001, 10_000)}
    finally:
        writer.remove(force=True)
    assert read[1] == (b"\n" * log_reader.SPARE + b"last\n", False)
    assert read[10_000] == (b"\n" * (log_reader.FEW - 1) + b"last\n", False)  # all of it would be 6 MB
    long, second, *rest = log_text.last_lines(read[2_001][0], 5_000, is_cut=read[2_001][1])
    assert long.rstrip("x") == log_text.BEGINS_EARLIER
    assert (second, rest) == ("second \x1b[31m\ufffd\rthird", [*[""] * 2_000, "last"])


@pytest.mark.parametrize("verb", ["create", "start", "stop", "destroy", "remove", "observe", "logs"])
def test_verb_ends_cleanly_while_somebody_keeps_removing_the_container(client, docked, verb):
    wanted = spec()
    verbs = {
        "create": lambda: docked.create(wanted),
        "start": lambda: docked.start(wanted.ref),
        "stop": lambda: docked.stop(wanted.ref, grace_s=1),
        "destroy": lambda: docked.destroy(wanted.ref),
        "remove": lambda: docked.remove(wanted.ref.engine_id),
        "observe": lambda: docked.observe(wanted.ref),
        "logs": lambda: docked.logs(wanted.ref, tail=3),
    }
    over = threading.Event()
    vandal = threading.Thread(target=_remove_until, args=(client, docked, over))
    vandal.start()
    try:
        for _ in range(4):
            refused = try_(verbs["create"], verbs["start"], verbs[verb])
            assert refused is None or refused.retryable, refused  # the worker's next attempt makes it right
    finally:
        over.set()
        vandal.join()
    docked.create(wanted)
    docked.start(wanted.ref)
    said = verbs[verb]()
    assert docked.observe(wanted.ref) is AFTER.get(verb, State.RUNNING)
    assert [found.ref for found in docked.list()] == ([] if verb in ("destroy", "remove") else [wanted.ref])
    assert dock.has_volume(client, wanted.ref.engine_id) is (verb != "remove")
    if verb == "observe":
        assert said is State.RUNNING
    if verb == "logs":
        until(lambda: docked.logs(wanted.ref, tail=3))


AFTER = {"stop": State.EXITED, "destroy": State.ABSENT, "remove": State.ABSENT}


def _remove_until(client, backend, over):
    mine = {"label": containers.DEPLOYMENT + "=" + backend.options.deployment}
    while not over.is_set():
        for found in client.api.containers(all=True, filters=mine):
            if containers.ENGINE in found["Labels"]:
                try:
                    client.api.remove_container(found["Id"], force=True)
                except docker.errors.APIError:
                    continue
