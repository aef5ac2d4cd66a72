"""The demo engine, run as an image runs it: a folder and nothing else of ours."""

import http.client
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest
import requests

from engines import proof
from tests.engines.backends.runtimes import KEY, KEY_HASH, call, execute, free_port, is_healthy
from tests.waiting import until

DEMO = Path(__file__).resolve().parents[3] / "engines" / "demo"


class Run:
    """One engine process after the other on the same data folder."""

    def __init__(self, folder: Path) -> None:
        shutil.copytree(DEMO, folder / "demo", ignore=shutil.ignore_patterns("__pycache__"))
        self.folder = folder
        self.port = free_port()

    def boot(self, *, healthy: bool = True, **env: str) -> subprocess.Popen:
        variables = {
            "ENGINE_KEY_HASH": KEY_HASH,
            "PORT": str(self.port),
            "SQLITE_DB_PATH": str(self.folder / "data" / "brain.sqlite"),
            "DEMO_FAULTS": "1",
            **env,
        }
        command = [sys.executable, "-S", "-m", "demo"]
        self.process = subprocess.Popen(command, cwd=self.folder, env=variables, stderr=subprocess.PIPE, text=True)
        if healthy:
            until(lambda: is_healthy(self.port))
        return self.process

    def end(self) -> int:
        """SIGTERM; the exit code."""
        self.process.terminate()
        return self.process.wait(10)


@pytest.fixture
def engine(tmp_path: Path):
    run = Run(tmp_path)
    yield run
    if run.process.poll() is None:
        run.process.kill()
    run.process.communicate()


def health(engine: Run):
    return call(engine.port, "GET", "/health", key=None)


def fault(engine: Run, **order):
    status, body = call(engine.port, "POST", "/faults", order)
    assert status == 200, body


# -- Health and key ----------------------------------------------------------------------------------------------------


def test_health_is_ok_without_a_key(engine):
    engine.boot()
    status, body = health(engine)
    assert (status, body["status"]) == (200, "ok")
    assert body["uptime_seconds"] >= 0
    assert body["subsystems"] == {"brain": "ok", "catalog": "none", "turns": 0}


def test_health_is_proved_for_a_nonce(engine, subtests):
    engine.boot()
    for nonce, proves in (("0" * 32, True), ("f" * 31, False), ("F" * 32, False), ("", False), (None, False)):
        with subtests.test(nonce=nonce):
            answer = requests.get(f"http://127.0.0.1:{engine.port}/health", headers={"X-Engine-Nonce": nonce}, timeout=10)
            assert answer.headers.get("X-Engine-Proof") == (proof.prove(KEY_HASH, nonce) if proves else None)
            assert answer.json()["status"] == "ok"


def test_health_answers_503_while_starting(engine):
    engine.boot(healthy=False, DEMO_BOOT_DELAY_S="600")
    status, body = until(lambda: answer_of(engine))
    assert (status, body["status"]) == (503, "starting")
    assert call(engine.port, "POST", "/execute", {"input": "x"})[0] == 503
    assert call(engine.port, "GET", "/counter")[0] == 503
    assert engine.end() == 0


def answer_of(engine: Run):
    with suppress(OSError):
        return health(engine)


@pytest.mark.parametrize("key", [None, "", "sk-sept-other", "\u00e9"])
def test_endpoints_refuse_a_wrong_key(engine, key):
    engine.boot()
    for method, path in (("POST", "/execute"), ("GET", "/counter"), ("POST", "/faults"), ("GET", "/no-such-path")):
        status, body = call(engine.port, method, path, {} if method == "POST" else None, key=key)
        assert (status, body["error"]["code"]) == (401, "INVALID_ENGINE_KEY")


# -- Turns -------------------------------------------------------------------------------------------------------------


def test_execute_streams_tokens_and_counts_in_the_volume(engine):
    engine.boot()
    events = execute(engine.port, {"input": "hello there"})
    assert events == [
        ("token", {"text": "hello"}),
        ("token", {"text": "there"}),
        ("done", {"echo": "hello there", "counter": 1, "boots": 1}),
    ]
    assert engine.end() == 0
    engine.boot()
    assert execute(engine.port, {"input": {"any": "json"}})[-1] == ("done", {"echo": {"any": "json"}, "counter": 2, "boots": 2})
    assert call(engine.port, "GET", "/counter") == (200, {"counter": 2, "boots": 2})


def test_counter_survives_a_kill(engine):
    engine.boot()
    execute(engine.port, {"input": "x"})
    engine.process.kill()
    engine.process.communicate()
    engine.boot()
    assert call(engine.port, "GET", "/counter") == (200, {"counter": 1, "boots": 2})


def test_execute_counts_every_one_of_many_at_a_time(engine):
    engine.boot()
    threads = [threading.Thread(target=execute, args=(engine.port, {"input": "a b"})) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert call(engine.port, "GET", "/counter")[1]["counter"] == 20


def test_execute_goes_on_when_the_client_has_gone(engine):
    engine.boot()
    body = json.dumps({"input": "a b c", "delay_s": 0.1})
    connection = http.client.HTTPConnection("127.0.0.1", engine.port, timeout=10)
    connection.request("POST", "/execute", body, {"X-Engine-Key": KEY})
    response = connection.getresponse()
    assert response.readline() == b"event: token\n"
    response.close()
    connection.close()
    until(lambda: call(engine.port, "GET", "/counter")[1]["counter"] == 1)
    until(lambda: health(engine)[1]["subsystems"]["turns"] == 0)


@pytest.mark.parametrize(
    ("body", "headers", "expected"),
    [
        (b"{", {}, 400),
        (b"[]", {}, 400),
        (b'{"delay_s": "long"}', {}, 400),
        (b'{"delay_s": NaN}', {}, 400),
        (b"", {"Content-Length": "x"}, 411),
        (b"", {"Content-Length": "2000000"}, 413),
        (b"", {"Transfer-Encoding": "chunked"}, 411),
    ],
)
def test_execute_refuses_a_bad_body_as_json(engine, body, headers, expected):
    engine.boot()
    lines = {"X-Engine-Key": KEY, "Content-Length": str(len(body)), **headers}
    connection = http.client.HTTPConnection("127.0.0.1", engine.port, timeout=10)
    connection.request("POST", "/execute", body, lines)
    response = connection.getresponse()
    assert (response.status, json.loads(response.read())["error"]["code"]) == (expected, "INVALID_REQUEST")
    connection.close()


def test_unknown_paths_and_methods_are_refused_as_json(engine):
    engine.boot()
    assert call(engine.port, "GET", "/no-such-path")[0] == 404
    assert call(engine.port, "GET", "/execute")[0] == 404
    assert call(engine.port, "PATCH", "/execute")[1]["error"]["code"] == "INVALID_REQUEST"


# -- Ending ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_sigterm_drains_and_exits_with_0(engine, number):
    engine.boot()
    events = []
    body = {"input": "a b c d", "delay_s": 0.3}
    turn = threading.Thread(target=lambda: events.extend(execute(engine.port, body)))
    turn.start()
    until(lambda: health(engine)[1]["subsystems"]["turns"] == 1)
    engine.process.send_signal(number)
    until(lambda: health(engine)[1]["status"] == "draining")
    assert health(engine)[0] == 503
    assert call(engine.port, "POST", "/execute", {"input": "too late"})[0] == 503
    assert engine.process.wait(10) == 0
    turn.join()
    assert events[-1][0] == "done"


def test_exit_code_is_98_when_the_port_is_taken(engine):
    with socket.create_server(("127.0.0.1", engine.port)):
        process = engine.boot(healthy=False)
        assert process.wait(10) == 98
        assert "cannot listen" in process.stderr.read()


@pytest.mark.parametrize("env", [{"ENGINE_KEY_HASH": ""}, {"ENGINE_KEY_HASH": "abc"}, {"PORT": "0"}, {"PORT": "x"}])
def test_exit_code_is_2_for_a_wrong_setting(engine, env):
    process = engine.boot(healthy=False, **env)
    assert process.wait(10) == 2
    said = process.stderr.read()
    assert next(iter(env)) in said
    assert said.count("\n") == 1


def test_exit_code_is_1_when_the_data_folder_cannot_be_used(engine):
    (engine.folder / "data").write_text("a file")
    process = engine.boot(healthy=False)
    assert process.wait(10) == 1
    assert "cannot use" in process.stderr.read()


# -- Faults ------------------------------------------------------------------------------------------------------------


def test_faults_do_not_exist_unless_switched_on(engine):
    engine.boot(DEMO_FAULTS="0", DEMO_BOOT_DELAY_S="600")
    assert call(engine.port, "POST", "/faults", {"mode": "exit"})[0] == 404
    assert health(engine)[0] == 200


def test_fault_500_and_not_ok_and_slow_show_in_health_until_none(engine):
    engine.boot()
    fault(engine, mode="500")
    assert health(engine)[0] == call(engine.port, "GET", "/counter")[0] == 500
    fault(engine, mode="not_ok")
    assert (health(engine)[0], health(engine)[1]["status"]) == (200, "degraded")
    fault(engine, mode="slow")
    assert (health(engine)[0], health(engine)[1]["status"]) == (503, "starting")
    fault(engine, mode="none")
    assert health(engine)[1]["status"] == "ok"


def test_fault_hang_holds_every_answer_back_until_it_ends(engine):
    engine.boot()
    fault(engine, mode="hang")
    with pytest.raises(TimeoutError):
        call(engine.port, "GET", "/health", key=None, timeout_s=0.3)
    waiting = threading.Thread(target=health, args=(engine,))
    waiting.start()
    fault(engine, mode="none")
    waiting.join(5)
    assert not waiting.is_alive()
    fault(engine, mode="hang", seconds=0.2)
    assert health(engine)[0] == 200


def test_fault_busy_holds_a_drain_until_it_ends(engine):
    engine.boot()
    fault(engine, mode="busy")
    assert health(engine)[1]["subsystems"]["turns"] == 1
    engine.process.terminate()
    until(lambda: health(engine)[1]["status"] == "draining")
    fault(engine, mode="none")
    assert engine.process.wait(10) == 0


def test_fault_exit_ends_the_process_with_its_code(engine):
    engine.boot()
    fault(engine, mode="exit", code=7)
    assert engine.process.wait(10) == 7


def test_fault_with_boots_comes_with_so_many_next_boots(engine):
    engine.boot()
    fault(engine, mode="exit", code=5, boots=2)
    assert health(engine)[0] == 200
    assert engine.end() == 0
    for _ in range(2):
        process = engine.boot(healthy=False)
        assert process.wait(10) == 5
        process.communicate()
    engine.boot()
    fault(engine, mode="not_ok", boots=1)
    engine.end()
    engine.boot()
    assert health(engine)[1]["status"] == "degraded"


@pytest.mark.parametrize("order", [{}, {"mode": "no-such"}, {"mode": "hang", "seconds": -1}, {"mode": "exit", "code": "1"}])
def test_fault_is_refused_when_it_makes_no_sense(engine, order):
    engine.boot()
    assert call(engine.port, "POST", "/faults", order)[0] == 400


def test_engine_imports_nothing_of_ours_and_no_package():
    source = "".join(path.read_text() for path in DEMO.glob("*.py"))
    imported = {line.split()[1].partition(".")[0] for line in source.splitlines() if line.startswith(("import ", "from "))}
    assert {name for name in imported if name and name not in sys.stdlib_module_names} == set()
