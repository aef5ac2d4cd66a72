import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest

from config import processes, supervision
from config.embedded import Servers
from config.home import BASE_DIR
from config.processes import PROCESSES
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
def test_environment_gives_the_owner_to_migrate_and_keeper_only(process: processes.Process) -> None:
    given = processes.environment(process, {"ORCH_DATABASE_OWNER_URL": "postgresql://owner"})
    assert bool(given["ORCH_DATABASE_OWNER_URL"]) == (process.name in ("migrate", "keeper"))
    assert given["ORCH_PROCESS"] == process.name


def test_commands_follow_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCH_WEB_THREADS", "7")
    monkeypatch.setenv("ORCH_BIND", "0.0.0.0")
    monkeypatch.setenv("ORCH_PORT", "8123")
    monkeypatch.setenv("ORCH_OPS_CONCURRENCY", "3")
    by_name = {process.name: " ".join(process.command()) for process in PROCESSES if process.kind == "app"}
    assert "--threads 7" in by_name["web"]
    assert "--bind 0.0.0.0:8123" in by_name["web"]
    assert "-Q lifecycle -P threads -c 3" in by_name["ops"]


@pytest.mark.parametrize("bind", ["::1", "[::1]"])
def test_web_server_listens_on_ipv6(monkeypatch: pytest.MonkeyPatch, bind: str) -> None:
    monkeypatch.setenv("ORCH_BIND", bind)
    monkeypatch.setenv("ORCH_PORT", "8123")
    web = next(process for process in PROCESSES if process.name == "web")
    assert web.command()[-2:] == ["--bind", "[::1]:8123"]


def test_supervisor_configuration_holds_no_secret_and_stops_servers_last(home: Path) -> None:
    urls = Servers(home).urls
    text = supervision.configuration(home, processes.of_kind("server", "app"))
    assert not [secret for secret in re.findall(r":([^:@]{20,})@", "".join([urls.database, urls.owner])) if secret in text]
    parsed = configparser.RawConfigParser()
    parsed.read_string(text)
    assert parsed.getint("group:app", "priority") > parsed.getint("group:server", "priority")
    for process in processes.of_kind("server", "app"):
        assert parsed.getboolean(f"program:{process.name}", "autorestart")
        assert parsed.getint(f"program:{process.name}", "stopwaitsecs") == process.stop_seconds


def test_dockerfile_copies_every_floor_and_runs_the_list() -> None:
    dockerfile = (BASE_DIR / "Dockerfile").read_text()
    for floor in ("config", "fleet", "engines", "policy", "audit"):
        assert f"COPY {floor}/ {floor}/" in dockerfile
        assert f"!{floor}/" in (BASE_DIR / ".dockerignore").read_text()
    assert 'ENTRYPOINT ["python", "-m", "config.processes", "exec"]' in dockerfile
