"""What only the subprocess backend promises: processes that outlive workers, and one per engine whatever happens to those."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from uuid import uuid4

import pytest

from engines.backends.base import BackendError, BackendUnavailable, InstanceMissing, PortTaken, Ref, State
from engines.backends.log_text import BEGINS_EARLIER
from engines.backends.process import launch, processes, store
from engines.backends.process.backend import MODULES, SubprocessBackend
from tests.engines.backends.runtimes import call, execute, is_healthy, processes_of, spec
from tests.waiting import until

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def workers():
    """Workers of a test, by `workers(backend, verb, ref)`; all are ended after it."""
    begun: list[subprocess.Popen] = []

    def begin(backend, verb, ref, **env):
        command = [sys.executable, "-m", "tests.engines.backends.worker", str(backend.root), verb, str(ref.engine_id)]
        worker = subprocess.Popen(
            [*command, str(ref.incarnation)],
            cwd=ROOT,
            env={**os.environ, **env},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        begun.append(worker)
        assert worker.stdout.readline() == "ready\n"
        return worker

    yield begin
    for worker in begun:
        worker.kill()
        worker.communicate()


def go(worker):
    worker.stdin.write("go\n")
    worker.stdin.flush()


def made(backend, **details):
    wanted = spec(**details)
    backend.create(wanted)
    return wanted


def running(backend, **details):
    wanted = made(backend, **details)
    backend.start(wanted.ref)
    until(lambda: is_healthy(wanted.port))
    return wanted


def folder_of(backend, wanted) -> Path:
    return backend.root / str(wanted.ref.engine_id)


def recorded(backend, wanted) -> processes.Process:
    return store.read_record(folder_of(backend, wanted), wanted.ref.mark).process


# -- Life beside a worker ----------------------------------------------------------------------------------------------


def test_start_leaves_engine_running_when_its_worker_ends(local, workers):
    wanted = made(local)
    worker = workers(local, "start", wanted.ref)
    go(worker)
    assert worker.stdout.readline() == "done\n"
    worker.wait()
    until(lambda: is_healthy(wanted.port))
    (pid,) = processes_of(wanted.ref.engine_id)
    assert pid == recorded(local, wanted).pid == os.getsid(pid) == os.getpgid(pid)


def test_start_hands_no_variable_of_the_worker_to_the_engine(local, workers):
    wanted = made(local, MODEL_KEY="passed-through", PORT="1")
    go(worker := workers(local, "start", wanted.ref, ORCH_MASTER_KEY="hidden"))
    assert worker.stdout.readline() == "done\n"
    content = Path(f"/proc/{recorded(local, wanted).pid}/environ").read_text().split("\0")
    variables = dict(entry.split("=", 1) for entry in content if entry)
    own = {"PATH", "PYTHONPATH", "PORT", "BIND", "SQLITE_DB_PATH", "CATALOG_DIR"}
    assert set(variables) == own | {"ENGINE_KEY_HASH", "DEMO_FAULTS", "MODEL_KEY"}
    assert variables["PORT"] == str(wanted.port)


def test_files_of_an_engine_are_readable_for_its_owner_only(local):
    wanted = running(local)
    for path in [folder_of(local, wanted), *folder_of(local, wanted).rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, path


def test_data_survives_stop_and_the_next_incarnation(local):
    first = running(local)
    execute(first.port, {"input": "one"})
    local.stop(first.ref, grace_s=10)
    local.start(first.ref)
    until(lambda: is_healthy(first.port))
    assert call(first.port, "GET", "/counter") == (200, {"counter": 1, "boots": 2})
    local.stop(first.ref, grace_s=10)
    second = running(local, engine_id=first.ref.engine_id, incarnation=2)
    assert call(second.port, "GET", "/counter") == (200, {"counter": 1, "boots": 3})


def test_list_names_no_port_on_which_a_stranger_listens_in_the_engines_place(local):
    wanted = running(local)
    record = store.read_record(folder_of(local, wanted), 1)
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        store.write_record(folder_of(local, wanted), 1, record._replace(port=stranger.getsockname()[1]))
        (found,) = local.list(wanted.ref.engine_id)
        assert (found.state, found.port) == (State.RUNNING, None)
    store.write_record(folder_of(local, wanted), 1, record)
    assert local.list(wanted.ref.engine_id)[0].serves(wanted.ref, wanted.port)


# -- Which process it is -----------------------------------------------------------------------------------------------


def test_observe_says_exited_for_a_zombie(local):
    wanted = made(local)
    child = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE)
    stat = Path(f"/proc/{child.pid}/stat")
    process = processes.Process(child.pid, int(stat.read_text().rpartition(")")[2].split()[19]), processes.current().boot)
    store.write_record(folder_of(local, wanted), "1", store.Record(process, wanted.port))
    assert local.observe(wanted.ref) is State.RUNNING
    child.stdin.close()
    until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "Z")
    assert local.observe(wanted.ref) is State.EXITED
    child.wait()


@pytest.mark.parametrize("other", [{"start": 1}, {"boot": "another-boot"}])
def test_stop_and_remove_spare_a_stranger_with_the_recorded_pid(local, other):
    wanted = made(local)
    stranger = subprocess.Popen(["sleep", "600"], start_new_session=True)
    try:
        process = processes.current()._replace(pid=stranger.pid, **other)
        store.write_record(folder_of(local, wanted), "1", store.Record(process, wanted.port))
        assert local.observe(wanted.ref) is State.EXITED
        local.stop(wanted.ref, grace_s=5)
        local.destroy(wanted.ref)
        local.remove(wanted.ref.engine_id)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_observe_says_exited_after_a_crash_and_start_brings_it_back(local):
    wanted = running(local)
    os.kill(recorded(local, wanted).pid, signal.SIGKILL)
    until(lambda: local.observe(wanted.ref) is State.EXITED)
    local.start(wanted.ref)
    until(lambda: is_healthy(wanted.port))


# -- Killed and frozen workers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("after_ms", [0, 10, 20, 30, 40, 50, 60, 80, 100, 140])
def test_start_runs_one_process_when_a_worker_was_killed_in_the_middle(local, workers, after_ms):
    wanted = made(local)
    worker = workers(local, "start", wanted.ref)
    go(worker)
    time.sleep(after_ms / 1000)  # not a wait for something: it is the instant at which the worker dies
    worker.kill()
    worker.wait()
    local.start(wanted.ref)
    until(lambda: is_healthy(wanted.port))
    assert processes_of(wanted.ref.engine_id) == [recorded(local, wanted).pid]


@pytest.mark.parametrize("after_ms", [0, 15, 30, 60])
def test_start_runs_one_process_when_a_frozen_worker_goes_on_later(local, workers, after_ms):
    old = made(local)
    new = made(local, engine_id=old.ref.engine_id, incarnation=2)
    worker = workers(local, "start", old.ref)
    go(worker)
    time.sleep(after_ms / 1000)  # the instant at which the worker is frozen
    worker.send_signal(signal.SIGSTOP)
    local.stop(old.ref, grace_s=10)
    successor = old
    try:
        local.start(new.ref)
        successor = new
    except BackendError:  # the frozen worker's launcher came first
        local.start(old.ref)
    worker.send_signal(signal.SIGCONT)
    assert worker.stdout.readline() in {"done\n", "other_runs\n"}
    assert processes_of(old.ref.engine_id) == [recorded(local, successor).pid]


def test_start_runs_one_process_when_many_workers_start_all_incarnations(local, workers):
    engine_id = uuid4()
    specs = [made(local, engine_id=engine_id, incarnation=number) for number in (1, 2, 3)]
    started = [workers(local, "start", wanted.ref) for wanted in specs * 2]
    for worker in started:
        go(worker)
    said = [worker.stdout.readline() for worker in started]
    assert set(said) <= {"done\n", "other_runs\n"}
    assert 1 <= said.count("done\n") <= 2
    assert len(processes_of(engine_id)) == 1


def test_remove_leaves_no_process_while_others_start_and_remove(local, workers):
    chance = random.Random(7)
    for _ in range(6):
        wanted = made(local)
        begun = [workers(local, verb, wanted.ref) for verb in ("start", "remove", "start", "remove")]
        for worker in begun:
            go(worker)
            time.sleep(chance.uniform(0, 0.05))  # spreads the verbs over each other's steps
        said = [worker.stdout.readline() for worker in begun]
        assert said[1] == said[3] == "done\n"
        assert {said[0], said[2]} <= {"done\n", "instance_missing\n"}
        assert not folder_of(local, wanted).exists()
        until(lambda wanted=wanted: processes_of(wanted.ref.engine_id) == [])


# -- What a death in the middle leaves ---------------------------------------------------------------------------------


def test_list_names_instance_whose_destroyer_died_before_the_kill(local):
    wanted = running(local)
    (folder_of(local, wanted) / "1.json").unlink()
    assert [(found.ref, found.state, found.port) for found in local.list()] == [(wanted.ref, State.RUNNING, wanted.port)]
    local.destroy(wanted.ref)
    assert local.list() == []
    assert processes_of(wanted.ref.engine_id) == []


def test_remove_goes_on_where_another_died(local):
    wanted = made(local)
    (folder_of(local, wanted) / "doomed").touch()
    assert [found.ref for found in local.list()] == [wanted.ref]
    with pytest.raises(InstanceMissing):
        local.start(wanted.ref)
    with pytest.raises(BackendUnavailable):
        local.create(wanted)
    local.remove(wanted.ref.engine_id)
    assert not folder_of(local, wanted).exists()


def test_list_ignores_what_is_not_ours(local):
    wanted = made(local)
    (local.root / "notes.txt").touch()
    (local.root / "catalog").mkdir()
    (local.root / str(uuid4())).touch()
    for name in ("x.json", "2.txt", ".3.json.abcd", "4.pid", "5.json"):
        (folder_of(local, wanted) / name).write_text("not ours")
    assert [found.ref for found in local.list()] == [wanted.ref]


def test_list_raises_unavailable_when_the_root_cannot_be_read(tmp_path):
    (tmp_path / "file").touch()
    backend = SubprocessBackend(tmp_path / "file" / "engines")
    with pytest.raises(BackendUnavailable):
        backend.list()
    with pytest.raises(BackendUnavailable):
        backend.create(spec())
    assert backend.observe(Ref(uuid4(), 1)) is State.UNKNOWN


# -- Starting ----------------------------------------------------------------------------------------------------------


def test_start_raises_port_taken_for_a_stranger_on_the_port(local):
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        wanted = made(local, port=stranger.getsockname()[1])
        with pytest.raises(PortTaken):
            local.start(wanted.ref)
        assert local.observe(wanted.ref) is State.CREATED
    local.start(wanted.ref)
    until(lambda: is_healthy(wanted.port))


def launched(backend, wanted, argv) -> int:
    order = {
        "folder": str(folder_of(backend, wanted)),
        "mark": "1",
        "argv": argv,
        "env": {"CATALOG_DIR": ""},
        "bind": "127.0.0.1",
    }
    command = [sys.executable, "-m", "engines.backends.process.launch"]
    return subprocess.run(command, input=json.dumps(order).encode(), cwd=ROOT, check=False).returncode


def test_launch_says_port_taken_when_the_engine_lost_the_race_for_it(local):
    assert launched(local, made(local), ["/bin/sh", "-c", "exit 98"]) == launch.Outcome.PORT_TAKEN


def test_launch_says_not_started_for_a_program_that_is_not_there(local):
    assert launched(local, made(local), ["/no/such/program"]) == launch.Outcome.NOT_STARTED


def test_start_succeeds_and_observe_says_exited_when_the_engine_ends_at_once(local):
    wanted = made(local, ENGINE_KEY_HASH="wrong")
    local.start(wanted.ref)
    assert local.observe(wanted.ref) is State.EXITED
    assert "ENGINE_KEY_HASH" in local.logs(wanted.ref, tail=1)[0]


# -- Ending ------------------------------------------------------------------------------------------------------------


def test_stop_lets_the_engine_finish_its_turns(local):
    wanted = running(local)
    events = []
    turn = threading.Thread(target=lambda: events.extend(execute(wanted.port, {"input": "a b c", "delay_s": 0.3})))
    turn.start()
    until(lambda: call(wanted.port, "GET", "/health")[1]["subsystems"]["turns"] == 1)
    local.stop(wanted.ref, grace_s=10)
    turn.join()
    assert events[-1] == ("done", {"echo": "a b c", "counter": 1, "boots": 1})


def test_stop_kills_after_the_grace(local):
    wanted = running(local)
    call(wanted.port, "POST", "/faults", {"mode": "busy"})
    begun = time.monotonic()
    local.stop(wanted.ref, grace_s=0.5)
    assert 0.5 <= time.monotonic() - begun < 5
    assert local.observe(wanted.ref) is State.EXITED


def test_remove_does_not_wait_for_a_stop_in_its_grace(local):
    wanted = running(local)
    call(wanted.port, "POST", "/faults", {"mode": "busy"})
    stopping = threading.Thread(target=local.stop, args=(wanted.ref,), kwargs={"grace_s": 60})
    stopping.start()
    until(lambda: call(wanted.port, "GET", "/health")[1]["status"] == "draining")
    local.remove(wanted.ref.engine_id)
    stopping.join(5)
    assert not stopping.is_alive()


@pytest.fixture
def forking_image():
    MODULES["forking"] = "tests.engines.backends.forking"
    yield "forking:latest"
    del MODULES["forking"]


def test_stop_ends_what_the_engine_forked(local, forking_image):
    wanted = made(local, image=forking_image)
    local.start(wanted.ref)
    until(lambda: len(processes_of(wanted.ref.engine_id)) == 2)
    local.stop(wanted.ref, grace_s=5)
    assert processes_of(wanted.ref.engine_id) == []


def test_start_ends_what_a_crashed_engine_left_behind(local, forking_image):
    wanted = made(local, image=forking_image)
    local.start(wanted.ref)
    before = until(lambda: len(found := processes_of(wanted.ref.engine_id)) == 2 and found)
    os.kill(recorded(local, wanted).pid, signal.SIGKILL)
    until(lambda: local.observe(wanted.ref) is State.EXITED)
    local.start(wanted.ref)
    assert not set(before) & set(processes_of(wanted.ref.engine_id))


# -- Logs --------------------------------------------------------------------------------------------------------------


def test_start_cuts_a_long_log_and_keeps_its_end(local):
    wanted = made(local)
    path = folder_of(local, wanted) / "1.log"
    path.write_text("earlier\n" * 200_000 + "last words\n")
    local.start(wanted.ref)
    until(lambda: is_healthy(wanted.port))
    assert path.stat().st_size < store.LOG_KEPT + 1_000
    lines = local.logs(wanted.ref, tail=3)
    assert lines[:2] == ["earlier", "last words"]
    assert "boot 1" in lines[2]


def test_logs_hold_a_line_as_the_engine_wrote_it_and_mark_a_cut(local):
    wanted = made(local)
    path = folder_of(local, wanted) / "1.log"
    path.write_bytes("10 %\r20 %\r\nun\u2028broken\x85\n".encode())
    assert local.logs(wanted.ref, tail=5) == ["10 %\r20 %", "un\u2028broken\x85"]
    path.write_bytes(b"x" * (store.LOG_LIMIT + 1) + b"\nlast\n")
    long, last = local.logs(wanted.ref, tail=5)
    assert (long.rstrip("x"), len(long), last) == (BEGINS_EARLIER, len(BEGINS_EARLIER) + store.LOG_LIMIT - 6, "last")
    path.write_bytes(b"x\n" + b"y" * (store.LOG_LIMIT - 1) + b"\n")
    assert local.logs(wanted.ref, tail=1) == ["y" * (store.LOG_LIMIT - 1)]
