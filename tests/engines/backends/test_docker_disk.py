"""An engine's disk on Docker: its volume measured from outside, its files limited, and no volume beside its own."""

import errno
import re
import threading
from contextlib import suppress
from dataclasses import replace
from functools import partial

import docker
import pytest

from engines.backends.base import BackendError, BackendUnavailable, ImageUnfit, Limits, QuotaMissing, State
from engines.backends.docker import Options, containers, volumes
from tests.engines.backends import dock
from tests.engines.backends.runtimes import IMAGE, spec
from tests.waiting import until

MB = 2**20
WRITE = """
import os
{prepare}
for number in range({count}):
    with open(f"/data/{name}-{{number}}", "wb") as file:
        file.write(os.urandom({mb} * 2**20))
"""


@pytest.fixture
def running(client, docked):
    """Starts an engine; returns its spec and its container."""

    def start(**details):
        limits = Limits(disk_mb=details.pop("disk_mb", None))
        wanted = replace(spec(**details), limits=limits)
        docked.create(wanted)
        docked.start(wanted.ref)
        return wanted, dock.container_of(client, docked, wanted.ref)

    return start


@pytest.fixture
def image(client):
    """Builds an image of the demo engine with further lines; all of them are removed afterwards."""
    made = []

    def build(*lines):
        made.append(dock.build(client, "\n".join((f"FROM {IMAGE}", "USER root", *lines, "USER 10001:10001"))))
        return made[-1]

    yield build
    for each in made:
        client.images.remove(each, force=True)


def anonymous(client):
    """Volumes to which the daemon itself gave a name."""
    return {volume.name for volume in client.volumes.list() if re.fullmatch("[0-9a-f]{64}", volume.name)}


# -- measured ------------------------------------------------------------------------------------------------------------------


def test_measure_counts_what_volumes_take_on_the_disk(docked, running):
    wanted, container = running()
    other, _ = running()
    prepare = """
with open("/data/sparse", "wb") as file:
    file.truncate(100 * 2**20)
os.symlink("/", "/data/root")
os.makedirs("/data/a/b/c", 0o700)
os.chmod("/data/a", 0)
"""
    assert dock.run_inside(container, WRITE.format(prepare=prepare, name="file", count=3, mb=2)) == ""
    dock.run_inside(container, "import os; [os.link('/data/file-0', f'/data/link-{n}') for n in range(5)]")
    usage = docked.measure([wanted.ref.engine_id, other.ref.engine_id], budget_s=10)
    assert 6 <= usage.used_mb[wanted.ref.engine_id] <= 7
    assert usage.used_mb[other.ref.engine_id] <= 1
    assert 0 < usage.free_mb < usage.total_mb
    assert docked.measure([], budget_s=10).total_mb == usage.total_mb


def test_measuring_container_may_only_read(client, docked, running):
    wanted, _ = running()
    config = docked._measurer._config([wanted.ref.engine_id], 1)
    code = """
import os
folder = "/v/" + os.listdir("/v")[0]
for act in (lambda: open(folder + "/x", "w"), lambda: open("/x", "w"), lambda: os.chown(folder, 1, 1), lambda: os.setuid(1)):
    try:
        act()
    except OSError as error:
        print(error.errno)
print(sorted(os.listdir("/sys/class/net")))
"""
    made = client.api.create_container_from_config({**config, "Entrypoint": ["python3", "-c", code]})
    try:
        client.api.start(made["Id"])
        client.api.wait(made["Id"])
        said = client.api.logs(made["Id"]).decode().splitlines()
    finally:
        client.api.remove_container(made["Id"], force=True)
    assert said == [*map(str, (errno.EROFS, errno.EROFS, errno.EROFS, errno.EPERM)), "['lo']"]
    host = config["HostConfig"]
    assert (host["NetworkMode"], host["CapDrop"], host["CapAdd"]) == ("none", ["ALL"], ["DAC_READ_SEARCH"])


def test_remove_does_not_wait_for_a_measurement(client, docked, running):
    wanted, _ = running()
    measurer = docked._measurer
    config = {**measurer._config([wanted.ref.engine_id], 1), "Entrypoint": ["sleep", "600"]}
    client.api.create_container_from_config(config, measurer.name)
    client.api.start(measurer.name)
    with pytest.raises(BackendUnavailable, match="another process"):
        docked.measure([wanted.ref.engine_id], budget_s=1)
    docked.remove(wanted.ref.engine_id)
    assert not dock.has_volume(client, wanted.ref.engine_id)
    with pytest.raises(docker.errors.NotFound):
        client.containers.get(measurer.name)


@pytest.mark.parametrize(("end", "said"), [("kill", "gave no answer: it"), ("remove", "was removed before its answer")])
def test_measure_that_loses_its_container_says_nothing(client, docked, running, end, said):
    wanted, container = running()
    dock.run_inside(container, "import os; [open(f'/data/{n}', 'w').close() for n in range(200)]")
    ends = {"kill": client.api.kill, "remove": partial(client.api.remove_container, force=True)}
    done = threading.Event()

    def end_what_measures():
        while not done.wait(0.005):
            with suppress(docker.errors.APIError):  # there is none, or the backend removes it
                if client.api.inspect_container(docked._measurer.name)["State"]["Running"]:
                    ends[end](docked._measurer.name)

    def loses_its_container():
        try:
            docked.measure([wanted.ref.engine_id], budget_s=10)
        except BackendError as error:
            return said in str(error)
        return False  # nobody ended this measurement in time

    thread = threading.Thread(target=end_what_measures)
    thread.start()
    try:
        until(loses_its_container, timeout_s=30)
    finally:
        done.set()
        thread.join()


def test_measure_clears_up_after_a_worker_that_died(client, docked, running):
    wanted, _ = running()
    client.api.create_container_from_config(docked._measurer._config([wanted.ref.engine_id], 1), docked._measurer.name)
    assert docked.measure([wanted.ref.engine_id], budget_s=10).used_mb


# -- limited -------------------------------------------------------------------------------------------------------------------


def test_no_process_writes_a_file_above_the_limit(running):
    _, container = running(disk_mb=4)
    assert "File too large" in dock.run_inside(container, WRITE.format(prepare="", name="big", count=1, mb=5))
    assert dock.run_inside(container, "import os; print(os.path.getsize('/data/big-0'))") == f"{4 * MB}\n"
    code = "import resource as r; r.setrlimit(r.RLIMIT_FSIZE, (2**40, 2**40))"
    assert "not allowed" in dock.run_inside(container, code)


def test_start_takes_the_present_limit(client, docked, running):
    wanted, _ = running(disk_mb=4)
    docked.stop(wanted.ref, grace_s=0)
    raised = replace(wanted, limits=Limits(disk_mb=8))
    digest = docked.create(raised).digest
    assert docked.observe(wanted.ref) is State.CREATED
    made = dock.container_of(client, docked, wanted.ref)
    assert (made.attrs["HostConfig"]["Ulimits"][-1]["Hard"], made.attrs["Image"]) == (8 * MB, digest)
    docked.start(wanted.ref)
    docked.create(replace(wanted, limits=Limits(disk_mb=9)))
    assert docked.observe(wanted.ref) is State.RUNNING


def test_volume_gets_a_quota_where_the_setting_is_on():
    options = Options(disk_quota=True)
    volume = volumes.mounts(spec().ref.engine_id, {"a": "b"}, Limits(disk_mb=77), options)[0]
    assert volume["VolumeOptions"] == {"Labels": {"a": "b"}, "DriverConfig": {"Name": "local", "Options": {"size": "77m"}}}
    config = containers.config(spec(), "net", options)
    assert config["HostConfig"]["Mounts"][0]["VolumeOptions"]["DriverConfig"]["Options"] == {"size": "1024m"}
    assert "DriverConfig" not in volumes.mounts(spec().ref.engine_id, {}, Limits(), Options())[0]["VolumeOptions"]


def test_create_never_falls_back_where_the_host_has_no_quotas(client):
    with dock.deployed(client, disk_quota=True) as backend:
        wanted = spec()
        with pytest.raises(QuotaMissing) as raised:
            backend.create(wanted)
        assert not raised.value.retryable
        assert backend.observe(wanted.ref) is State.ABSENT
        assert backend.list_volumes() == {}


# -- an image's own volumes ----------------------------------------------------------------------------------------------------


def test_volumes_of_an_image_become_small_tmpfs(client, docked, running, image):
    before = anonymous(client)
    made = image("RUN mkdir -p /var/cache/agent", "VOLUME /var/cache/agent/ /srv/new /tmp /data /data/inner")
    wanted, container = running(image=made)
    mine = volumes.name(wanted.ref.engine_id)
    assert anonymous(client) == before
    assert [mount["Name"] for mount in container.attrs["Mounts"] if mount["Type"] == "volume"] == [mine]
    code = f"""
import os
for place in ("/var/cache/agent", "/srv/new", "/data/inner", "/tmp"):
    disk = os.statvfs(place)
    print(place, disk.f_blocks * disk.f_frsize // {MB}, os.access(place, os.W_OK), bool(disk.f_flag & os.ST_NOEXEC))
"""
    each = docked.options.tmp_mb // 3
    assert dock.run_inside(container, code).splitlines() == [
        f"/var/cache/agent {each} True True", f"/srv/new {each} True True", f"/data/inner {each} True True",
        f"/tmp {docked.options.tmp_mb} True True",
    ]  # fmt: skip
    docked.remove(wanted.ref.engine_id)
    assert anonymous(client) == before


@pytest.mark.parametrize("declared", ["VOLUME /", "VOLUME relative/path", f"VOLUME {' '.join(f'/v{n}' for n in range(17))}"])
def test_create_refuses_an_image_with_volumes_that_cannot_be_bounded(client, docked, image, declared):
    before = anonymous(client)
    wanted = spec(image=image(declared))
    with pytest.raises(ImageUnfit):
        docked.create(wanted)
    assert docked.observe(wanted.ref) is State.ABSENT
    assert anonymous(client) == before


def test_check_names_a_volume_of_the_daemons_own():
    engine_id = spec().ref.engine_id
    own = {"Type": "volume", "Name": volumes.name(engine_id), "Destination": "/data"}
    volumes.check({"Mounts": [own, {"Type": "tmpfs", "Destination": "/x"}]}, engine_id)
    with pytest.raises(ImageUnfit, match="/anonymous"):
        volumes.check({"Mounts": [own, {"Type": "volume", "Name": "0" * 64, "Destination": "/anonymous"}]}, engine_id)
