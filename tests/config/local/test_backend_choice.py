"""Where a local run's engines live."""

import re
import signal
import subprocess
from pathlib import Path

import pytest

from config.local import backend_choice, embedded
from config.local.home import deployment, lay_out
from tests import servers
from tests.config.support import Run
from tests.engines.backends import dock
from tests.engines.backends.runtimes import IMAGE

NOWHERE = "unix:///nowhere/docker.sock"


@pytest.fixture
def laid_out(home, monkeypatch):
    """A home with its folders, and an environment in which nothing of this is decided."""
    for name in ("ORCH_ENGINE_BACKEND", "ORCH_DOCKER_URL", "ORCH_ENGINE_IMAGE", "ORCH_DEPLOYMENT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ORCH_ENVIRONMENT", "local")
    lay_out(home)
    return home


def test_choose_takes_what_the_environment_says(laid_out, monkeypatch):
    monkeypatch.setenv("ORCH_ENGINE_BACKEND", "memory")
    assert backend_choice.choose(laid_out) == ("memory", "ORCH_ENGINE_BACKEND is set")
    assert backend_choice.kept(laid_out) == ""


def test_choose_takes_subprocess_where_no_daemon_answers(laid_out, monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", NOWHERE)
    assert backend_choice.choose(laid_out) == ("subprocess", "no Docker daemon answers")
    monkeypatch.delenv("ORCH_DATABASE_URL", raising=False)
    assert embedded.environment(laid_out)["ORCH_ENGINE_BACKEND"] == "subprocess"


def test_choose_takes_subprocess_where_the_image_is_missing(laid_out, monkeypatch):
    dock.connect()
    monkeypatch.setenv("DOCKER_HOST", dock.URL)
    monkeypatch.setenv("ORCH_ENGINE_IMAGE", "nobody/built:this")
    backend, why = backend_choice.choose(laid_out)
    assert backend == "subprocess"
    assert "make engine-image" in why


def test_choose_takes_docker_once_it_can(laid_out, monkeypatch):
    dock.connect()
    monkeypatch.setenv("DOCKER_HOST", NOWHERE)
    backend_choice.choose(laid_out)
    monkeypatch.setenv("DOCKER_HOST", dock.URL)
    assert backend_choice.choose(laid_out) == ("docker", "a Docker daemon answers and has the engine image")


@pytest.fixture
def on_docker(laid_out, monkeypatch):
    """A home that has chosen Docker."""
    dock.connect()
    monkeypatch.setenv("DOCKER_HOST", dock.URL)
    backend_choice.choose(laid_out)
    return laid_out


def test_choose_stays_with_docker_while_it_has_engines_there(on_docker, monkeypatch):
    client = dock.connect()
    monkeypatch.setenv("ORCH_ENGINE_IMAGE", "nobody/built:this")
    volume = client.volumes.create(labels={dock.DEPLOYMENT: deployment(on_docker)})
    try:
        assert backend_choice.choose(on_docker) == ("docker", "kept from the last run: this home has engines")
    finally:
        volume.remove()
    assert backend_choice.choose(on_docker)[0] == "subprocess"


def test_choose_stays_with_docker_while_nobody_can_say_whether_it_has_engines_there(on_docker, monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", NOWHERE)
    assert backend_choice.choose(on_docker) == ("docker", "kept from the last run: this home has engines")
    backend_choice.forget(on_docker)  # as the end of a run does that leaves no engine
    assert backend_choice.choose(on_docker) == ("subprocess", "no Docker daemon answers")


def test_choose_stays_with_subprocess_while_it_has_engines(laid_out, monkeypatch):
    dock.connect()
    monkeypatch.setenv("DOCKER_HOST", NOWHERE)
    backend_choice.choose(laid_out)
    (laid_out / "engines" / "one").mkdir()
    monkeypatch.setenv("DOCKER_HOST", dock.URL)
    assert backend_choice.choose(laid_out) == ("subprocess", "kept from the last run: this home has engines")


def test_choose_stays_with_the_docker_that_was_asked_for_while_it_has_engines_there(laid_out, monkeypatch):
    client = dock.connect()
    monkeypatch.setenv("DOCKER_HOST", dock.URL)
    monkeypatch.setenv("ORCH_ENGINE_IMAGE", "nobody/built:this")  # by itself it would not be chosen
    with monkeypatch.context() as asked:
        asked.setenv("ORCH_ENGINE_BACKEND", "docker")
        assert backend_choice.choose(laid_out) == ("docker", "ORCH_ENGINE_BACKEND is set")
    volume = client.volumes.create(labels={dock.DEPLOYMENT: deployment(laid_out)})
    try:
        assert backend_choice.choose(laid_out) == ("docker", "kept from the last run: this home has engines")
    finally:
        volume.remove()
    assert backend_choice.choose(laid_out)[0] == "subprocess"


def test_choose_stays_with_the_subprocess_that_was_asked_for_while_it_has_engines(on_docker, monkeypatch):
    with monkeypatch.context() as asked:
        asked.setenv("ORCH_ENGINE_BACKEND", "subprocess")
        backend_choice.choose(on_docker)
    (on_docker / "engines" / "one").mkdir()
    assert backend_choice.choose(on_docker) == ("subprocess", "kept from the last run: this home has engines")
    (on_docker / "engines" / "one").rmdir()
    assert backend_choice.choose(on_docker)[0] == "docker"


@pytest.mark.timeout(240)
def test_run_on_docker_prints_why_and_leaves_nothing_running(home: Path) -> None:
    client = dock.connect()
    run = Run(home, servers.free_port(), ORCH_ENGINE_BACKEND="", DOCKER_HOST=dock.URL)
    run.wait_for_banner()
    deployment = embedded.environment(home)["ORCH_DEPLOYMENT"]
    try:
        assert "Engines    docker (a Docker daemon answers and has the engine image)" in run.output
        lines = re.sub(r"\n  curl -sS -X DELETE [^\n]*", "", run.tour())  # the engine is to be there at the end
        pasted = subprocess.run(["bash", "-eu"], input=lines, capture_output=True, text=True, timeout=120)
        assert '"echo": "hello"' in pasted.stdout, pasted.stdout + pasted.stderr
        mine = {"label": f"{dock.DEPLOYMENT}={deployment}"}
        assert {container.image.tags[0] for container in client.containers.list(filters=mine, ignore_removed=True)} >= {IMAGE}
        run.signal_group(signal.SIGTERM)
        run.wait()
        assert client.containers.list(filters=mine) == []
        assert backend_choice.kept(home) == "docker"  # its engine is there
    finally:
        dock.sweep(client, deployment)


@pytest.mark.timeout(240)
def test_run_chooses_anew_after_one_that_made_no_engine(home: Path) -> None:
    dock.connect()
    for daemon, backend in ((dock.URL, "docker"), (NOWHERE, "subprocess")):
        run = Run(home, servers.free_port(), ORCH_ENGINE_BACKEND="", DOCKER_HOST=daemon)
        run.wait_for_banner()
        assert f"Engines    {backend} (" in run.output
        run.signal_group(signal.SIGTERM)
        run.wait()
