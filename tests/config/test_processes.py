import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest

from common.env import Env
from config import processes
from config.local import supervision
from config.local.embedded import Refused, Servers
from config.local.home import BASE_DIR
from config.processes import EDITIONS, PROCESSES, Edition, of_kind
from tests.config.support import environment


def run(*arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "config.processes", *arguments]
    env = environment(Path("/nonexistent"), **changes)
    return subprocess.run(command, cwd=BASE_DIR, env=env, capture_output=True, text=True, timeout=60)


def test_procfile_is_in_step_with_the_list() -> None:
    assert run("procfile", "--check").returncode == 0
    assert (BASE_DIR / "Procfile").read_text() == run("procfile").stdout


def test_exec_refuses_a_name_that_is_not_in_the_list() -> None:
    refused = run("exec", "nothing")
    assert refused.returncode == 2
    assert "web" in refused.stderr


@pytest.mark.parametrize("process", PROCESSES, ids=lambda process: process.name)
def test_environment_gives_the_owner_to_those_who_migrate_and_keeper_only(process: processes.Process) -> None:
    given = processes.environment(process, {"ORCH_DATABASE_OWNER_URL": "postgresql://owner"})
    assert bool(given["ORCH_DATABASE_OWNER_URL"]) == (process.name in ("migrate", "prepare", "keeper"))
    assert given["ORCH_PROCESS"] == process.name


@pytest.mark.parametrize(
    ("edition", "names"),
    [
        ("small", ["web", "worker", "keeper"]),
        ("full", ["web", "wake", "ops", "background", "health", "keeper", "beat"]),
    ],
)
def test_edition_has_exactly_these_processes(edition: Edition, names: list[str]) -> None:
    assert [process.name for process in of_kind("app", edition=edition)] == names
    assert [process.name for process in of_kind("server", "once", edition=edition)] == ["postgres", "valkey", "migrate"]


def test_edition_is_small_unless_the_environment_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ORCH_PROCESSES", raising=False)
    assert processes.edition() == "small" == Env.model_fields["processes"].default
    monkeypatch.setenv("ORCH_PROCESSES", "full")
    assert processes.edition() == "full"
    monkeypatch.setenv("ORCH_PROCESSES", "medium")
    with pytest.raises(Refused, match="ORCH_PROCESSES=medium is neither small nor full"):
        processes.edition()


def test_process_of_one_edition_is_of_that_edition_whatever_its_environment_says() -> None:
    by_name = {process.name: process for process in PROCESSES}
    for name, said, given in (("ops", "small", "full"), ("worker", "full", "small"), ("web", "full", "full")):
        assert processes.environment(by_name[name], {"ORCH_PROCESSES": said})["ORCH_PROCESSES"] == given


@pytest.mark.parametrize(("edition", "workers"), [("small", 1), ("full", 2)])
def test_web_has_as_many_workers_as_its_edition_unless_they_are_set(
    monkeypatch: pytest.MonkeyPatch, edition: Edition, workers: int
) -> None:
    web = next(process for process in PROCESSES if process.name == "web")
    monkeypatch.delenv("ORCH_WEB_WORKERS", raising=False)
    monkeypatch.setenv("ORCH_PROCESSES", edition)
    assert f"--workers {workers} " in " ".join(web.command())
    monkeypatch.setenv("ORCH_WEB_WORKERS", "5")
    assert "--workers 5 " in " ".join(web.command())


def test_commands_follow_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCH_WEB_THREADS", "7")
    monkeypatch.setenv("ORCH_BIND", "0.0.0.0")
    monkeypatch.setenv("ORCH_PORT", "8123")
    by_name = {process.name: " ".join(process.command()) for process in PROCESSES if process.kind == "app"}
    assert "--threads 7" in by_name["web"]
    assert "--bind 0.0.0.0:8123" in by_name["web"]


@pytest.mark.parametrize("bind", ["::1", "[::1]"])
def test_web_server_listens_on_ipv6(monkeypatch: pytest.MonkeyPatch, bind: str) -> None:
    monkeypatch.setenv("ORCH_BIND", bind)
    monkeypatch.setenv("ORCH_PORT", "8123")
    web = next(process for process in PROCESSES if process.name == "web")
    assert web.command()[-2:] == ["--bind", "[::1]:8123"]


@pytest.mark.parametrize("edition", EDITIONS)
def test_supervisor_configuration_holds_no_secret_and_stops_servers_last(home: Path, edition: Edition) -> None:
    urls = Servers(home).urls
    text = supervision.configuration(home, of_kind("server", "app", edition=edition))
    assert not [secret for secret in re.findall(r":([^:@]{20,})@", "".join([urls.database, urls.owner])) if secret in text]
    parsed = configparser.RawConfigParser()
    parsed.read_string(text)
    assert parsed.getint("group:app", "priority") > parsed.getint("group:server", "priority")
    for process in of_kind("server", "app", edition=edition):
        assert parsed.getboolean(f"program:{process.name}", "autorestart")
        assert parsed.getint(f"program:{process.name}", "stopwaitsecs") == process.stop_seconds


def test_steps_run_once_and_are_stopped_before_what_they_use(home: Path) -> None:
    parsed = configparser.RawConfigParser()
    parsed.read_string(supervision.configuration(home, of_kind("server", "app", "step", edition="small")))
    for name in ("prepare", "await_workers", "stand_down"):
        assert not parsed.getboolean(f"program:{name}", "autorestart")
        assert parsed.getint(f"program:{name}", "startretries") == 0
    assert parsed.getint("group:step", "priority") > parsed.getint("group:app", "priority")


def test_dockerfile_copies_every_floor_and_runs_the_list() -> None:
    dockerfile = (BASE_DIR / "Dockerfile").read_text()
    for floor in ("config", "fleet", "engines", "policy", "audit", "common"):
        assert f"COPY {floor}/ {floor}/" in dockerfile
        assert f"!{floor}/" in (BASE_DIR / ".dockerignore").read_text()
    assert 'ENTRYPOINT ["python", "-m", "config.processes", "exec"]' in dockerfile
