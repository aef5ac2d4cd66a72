"""What the memory backend does beyond the contract: for all processes, and on a test's order."""

import http.client
import itertools
import json
import socket
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from uuid import uuid4

import pytest

from engines.backends.base import BackendError, BackendUnavailable, PortTaken, Ref, State
from engines.backends.memory import Behaviour, MemoryBackend
from engines.backends.shutdown import stop_all
from engines.health import probes
from tests import waiting
from tests.engines.backends.runtimes import KEY_HASH, call, spec
from tests.engines.strangers import OK, listening, saying
from tests.memory import ROOT, Server
from tests.waiting import until


@pytest.fixture
def server(memory_server) -> Server:
    return memory_server


@pytest.fixture
def backend(server) -> MemoryBackend:
    return server.backend


@contextmanager
def served(path):
    with closing(Server(path)) as server:
        server.start()
        yield server


def started(backend, *specs):
    for wanted in specs:
        backend.create(wanted)
        backend.start(wanted.ref)
    return specs[0]


def probe(*specs):
    targets = [probes.Target(each.ref.engine_id, 1, each.port, KEY_HASH, must_prove=True) for each in specs]
    return [found.text for found in probes.probe_all(targets)]


# -- trouble with verbs ------------------------------------------------------------------------------------------------


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
    wanted = started(backend, spec())
    backend.fail_next("stop", BackendUnavailable("asked for"))
    assert stop_all(backend, grace_s=1) == [wanted.ref]


def test_reset_leaves_no_instance_and_no_trouble(backend):
    wanted = started(backend, spec())
    usual = backend.boot
    backend.behave(None, Behaviour(hangs=True))
    backend.fail_next("create", BackendError("no"))
    backend.missing_images |= {wanted.image}
    backend.boot = "second"
    backend.unavailable = True
    backend.reset()
    assert (backend.identity(), backend.list(), backend.list_volumes(), backend.missing_images) == (usual, [], {}, set())
    assert probe(started(backend, wanted)) == ["ok"]


# -- ports and health --------------------------------------------------------------------------------------------------


def test_instance_answers_while_it_runs_only(backend):
    wanted = spec()
    ends = {"stop": lambda: backend.stop(wanted.ref, grace_s=1), "exit": lambda: backend.exit(wanted.ref)}
    ends |= {"destroy": lambda: backend.destroy(wanted.ref), "remove": lambda: backend.remove(wanted.ref.engine_id)}
    for end in ends.values():
        backend.create(wanted)
        assert probe(wanted) == ["connect_error"]
        backend.start(wanted.ref)
        assert call(wanted.port, "GET", "/health?now") == (200, {"status": "ok"})
        end()
        assert probe(wanted) == ["connect_error"]


@pytest.mark.parametrize(("method", "path"), [("GET", "/"), ("POST", "/health"), ("POST", "/execute")])
def test_instance_has_nothing_but_its_health(backend, method, path):
    wanted = started(backend, spec())
    error = {"code": "NOT_FOUND", "message": f"There is no {method} {path}."}
    assert call(wanted.port, method, path, {"input": "x" * 100_000}) == (404, {"error": error})


def test_start_on_a_strangers_port_is_port_taken_and_leaves_it_created(backend):
    with listening(saying(OK)) as (port,):
        wanted = spec(port=port)
        backend.create(wanted)
        with pytest.raises(PortTaken):
            backend.start(wanted.ref)
        assert backend.observe(wanted.ref) is State.CREATED


def test_instances_listen_where_their_client_says(server, backend):
    elsewhere = MemoryBackend(server.path, bind="127.0.0.2")
    wanted = started(elsewhere, spec())
    assert probe(wanted) == ["connect_error"]
    connection = http.client.HTTPConnection("127.0.0.2", wanted.port, timeout=5)
    connection.request("GET", "/health")
    assert json.loads(connection.getresponse().read()) == {"status": "ok"}
    connection.close()


def test_start_on_an_address_that_is_not_ours_is_an_error(server, backend):
    wanted = spec()
    backend.create(wanted)
    with pytest.raises(BackendError, match="cannot listen") as raised:
        MemoryBackend(server.path, bind="192.0.2.1").start(wanted.ref)
    assert not raised.value.retryable


# -- behaviour ---------------------------------------------------------------------------------------------------------


def test_thousand_are_probed_and_exactly_the_troubled_ones_are_judged_so(backend, settings):
    settings.ENV = settings.ENV.model_copy(update={"health_check_timeout_s": 3})
    ports = itertools.count(27_001)  # below those that the system gives to any connection
    specs = [started_on_a_port_of(ports, backend) for _ in range(1_000)]
    assert Counter(probe(*specs)) == {"ok": 1_000}
    troubles = {
        "timeout": Behaviour(hangs=True),
        "connect_error": Behaviour(dies_after_s=0),
        "status_418": Behaviour(status=418),
        "not_json": Behaviour(body=b"\xff"),
        "not_ok": Behaviour(body=b"{}"),
        "too_large": Behaviour(body=b" " * 100_000),
    }
    expected = ["ok"] * len(specs)
    for number, (text, behaviour) in enumerate(troubles.items()):
        some = range(number, len(specs), 17)
        backend.behave([specs[index].ref.engine_id for index in some], behaviour)
        for index in some:
            expected[index] = text
    assert probe(*specs) == expected
    dead = {found.ref for found in backend.list() if found.state is State.EXITED}
    assert dead == {each.ref for each, text in zip(specs, expected, strict=True) if text == "connect_error"}
    backend.behave(None, Behaviour())
    assert Counter(probe(*specs)) == {"ok": 1_000 - len(dead), "connect_error": len(dead)}


def started_on_a_port_of(ports, backend):
    engine_id = uuid4()
    while True:
        wanted = spec(engine_id, port=next(ports))
        with suppress(PortTaken):
            return started(backend, wanted)


def test_last_word_counts_and_holds_for_instances_to_come(backend):
    engine_id = uuid4()
    first, second, other = spec(engine_id), spec(engine_id, 2), spec()
    backend.behave(None, Behaviour(status=500))
    backend.behave([engine_id], Behaviour(status=501))
    backend.behave({second.ref}, Behaviour())
    started(backend, first, other)
    assert probe(first, other) == ["status_501", "status_500"]
    backend.stop(first.ref, grace_s=1)
    assert probe(started(backend, second)) == ["ok"]
    backend.behave(None, Behaviour(status=502))
    assert probe(second, other) == ["status_502", "status_502"]


def test_answer_is_late_by_its_delay(backend, settings):
    wanted = started(backend, spec())
    backend.behave([wanted.ref], Behaviour(delay_s=0.3))
    since = waiting.now()
    assert probe(wanted) == ["ok"]
    assert waiting.passed(since, 0.3)
    settings.ENV = settings.ENV.model_copy(update={"health_check_timeout_s": 0.1})
    assert probe(wanted) == ["timeout"]


def test_raw_answer_has_no_end_until_its_client_goes(backend):
    wanted = started(backend, spec())
    for pause_s, count in ((0, 200_000), (0.01, 20)):
        backend.behave([wanted.ref], Behaviour(begin=b"no ", repeat=b"end ", pause_s=pause_s))
        with socket.create_connection(("127.0.0.1", wanted.port), timeout=10) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\n\r\n")
            received = b""
            while len(received) < 4 * count:
                received += connection.recv(65_536)
        assert (b"no " + b"end " * (count + 65_536)).startswith(received)


def test_boot_takes_its_time_and_holds_up_nobody(backend):
    slow, other = spec(), spec()
    backend.behave([slow.ref], Behaviour(boot_s=0.5))
    since = waiting.now()
    started(backend, slow, other)
    assert probe(slow, other) == ["status_503", "ok"]
    assert call(slow.port, "GET", "/health") == (503, {"status": "starting"})
    until(lambda: probe(slow) == ["ok"])
    assert waiting.passed(since, 0.5)


def test_death_comes_after_each_start(backend):
    wanted = spec()
    backend.behave([wanted.ref], Behaviour(dies_after_s=0.2))
    for _ in range(2):
        started(backend, wanted)
        assert backend.observe(wanted.ref) is State.RUNNING
        until(lambda: backend.observe(wanted.ref) is State.EXITED)
        assert probe(wanted) == ["connect_error"]
    assert backend.logs(wanted.ref, tail=9) == ["started, boot 1", "exited", "started, boot 2", "exited"]


def test_death_at_once_is_seen_when_start_returns(backend):
    backend.behave(None, Behaviour(dies_after_s=0))
    assert backend.observe(started(backend, spec()).ref) is State.EXITED


def test_death_of_an_earlier_order_does_not_come(backend):
    wanted, other = spec(), spec()
    backend.behave(None, Behaviour(dies_after_s=0.2))
    started(backend, wanted, other)
    backend.behave([wanted.ref], Behaviour())
    until(lambda: backend.observe(other.ref) is State.EXITED)
    assert backend.observe(wanted.ref) is State.RUNNING


def test_death_breaks_the_connections_that_hang(backend):
    wanted = started(backend, spec())
    backend.behave([wanted.ref], Behaviour(hangs=True))
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(call, wanted.port, "GET", "/health", timeout_s=30)
        since = waiting.now()
        until(lambda: waiting.passed(since, 0.2))
        assert not asked.done()
        backend.exit(wanted.ref)
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            asked.result(10)


@pytest.mark.parametrize(("stop_s", "grace_s"), [(0.5, 10), (60, 0.5)])
def test_stop_waits_for_the_last_turn_within_its_grace_and_holds_up_nobody(backend, stop_s, grace_s):
    wanted = started(backend, spec())
    backend.behave([wanted.ref], Behaviour(stop_s=stop_s))
    with ThreadPoolExecutor(2) as pool:
        since = waiting.now()
        stops = [pool.submit(backend.stop, wanted.ref, grace_s=grace_s) for _ in range(2)]
        until(lambda: call(wanted.port, "GET", "/health") == (503, {"status": "draining"}))
        assert backend.observe(wanted.ref) is State.RUNNING
        for stop in stops:
            stop.result(10)
    assert waiting.passed(since, 0.5)
    assert backend.observe(wanted.ref) is State.EXITED


def test_destroy_ends_an_instance_in_the_middle_of_its_stop(backend):
    wanted = started(backend, spec())
    backend.behave([wanted.ref], Behaviour(stop_s=60))
    with ThreadPoolExecutor(1) as pool:
        stop = pool.submit(backend.stop, wanted.ref, grace_s=60)
        until(lambda: probe(wanted) == ["status_503"])
        backend.destroy(wanted.ref)
        stop.result(10)
    assert backend.observe(wanted.ref) is State.ABSENT


# -- processes ---------------------------------------------------------------------------------------------------------

OTHER_PROCESS = """
import sys
from pathlib import Path
from uuid import UUID
from engines.backends.base import DiskFull, Ref
from engines.backends.memory import Behaviour, MemoryBackend

backend, ref = MemoryBackend(Path(sys.argv[1])), Ref(UUID(sys.argv[2]), 1)
print(backend.observe(ref).value)
backend.start(ref)
backend.behave([ref], Behaviour(status=503))
backend.fail_next("stop", DiskFull("of the other"))
"""


def test_two_processes_see_the_same_instances_and_the_same_trouble(server, backend):
    wanted = spec()
    backend.create(wanted)
    command = [sys.executable, "-c", OTHER_PROCESS, str(server.path), str(wanted.ref.engine_id)]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert told == "created\n"
    assert backend.observe(wanted.ref) is State.RUNNING
    assert probe(wanted) == ["status_503"]
    with pytest.raises(BackendError, match="of the other") as raised:
        backend.stop(wanted.ref, grace_s=1)
    assert raised.value.code == "disk_full"


def test_without_a_server_the_error_names_the_command_and_nothing_is_known(tmp_path):
    backend = MemoryBackend(tmp_path / "memory.sock")
    with pytest.raises(BackendUnavailable, match=rf"-m engines.backends.memory {tmp_path}/memory.sock"):
        backend.list()
    assert backend.observe(spec().ref) is State.UNKNOWN


def test_server_that_was_killed_comes_back_as_another_that_knows_no_instance(tmp_path):
    with served(tmp_path / "memory.sock") as server:
        backend, wanted = server.backend, spec()
        before = backend.identity()
        started(backend, wanted)
        server.kill()
        with pytest.raises(BackendUnavailable):
            backend.list_volumes()
        assert backend.observe(wanted.ref) is State.UNKNOWN
        server.start()
        assert backend.identity() != before
        assert (backend.list(), backend.list_volumes()) == ([], {})
        assert probe(started(backend, replace(wanted, ref=Ref(wanted.ref.engine_id, 2)))) == ["ok"]


def test_server_that_dies_in_the_middle_of_a_verb_makes_it_unavailable(tmp_path):
    with served(tmp_path / "memory.sock") as server, ThreadPoolExecutor(1) as pool:
        wanted = started(server.backend, spec())
        server.backend.behave(None, Behaviour(stop_s=60))
        stop = pool.submit(server.backend.stop, wanted.ref, grace_s=60)
        until(lambda: probe(wanted) == ["status_503"])
        server.kill()
        with pytest.raises(BackendUnavailable):
            stop.result(10)


def test_second_server_on_a_socket_is_refused_and_the_first_goes_on(server, backend):
    command = [sys.executable, "-m", "engines.backends.memory", str(server.path)]
    second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (second.returncode, second.stderr) == (1, f"memory: another server has {server.path}\n")
    assert backend.identity()


def test_socket_may_lie_deep(tmp_path):
    with served(tmp_path / ("deep" * 30) / "memory.sock") as server:
        assert server.backend.list() == []


def test_socket_is_ours_alone(server):
    assert server.path.stat().st_mode & 0o777 == 0o600
