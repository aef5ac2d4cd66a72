import os
import signal
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
import redis

from config.local import embedded, postgres, valkey
from config.local.embedded import Refused, Servers
from config.local.home import BASE_DIR, LONGEST_SOCKET
from tests import waiting
from tests.config.support import environment, living

pytestmark = pytest.mark.embedded


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


# -- Servers -----------------------------------------------------------------------------------------------------------


def test_start_gives_each_role_what_it_may(servers: Servers) -> None:
    with psycopg.connect(servers.urls.owner) as owner:
        owner.execute("CREATE TABLE thing (id bigint GENERATED ALWAYS AS IDENTITY, name text)")
    with psycopg.connect(servers.urls.database) as app:
        app.execute("INSERT INTO thing (name) VALUES ('a')")
        app.execute("UPDATE thing SET name = 'b'")
        assert app.execute("DELETE FROM thing RETURNING name").fetchone() == ("b",)
    with psycopg.connect(servers.urls.superuser) as admin:
        rows = admin.execute("SELECT rolname FROM pg_roles WHERE rolsuper OR rolcreaterole OR rolcreatedb").fetchall()
        assert rows == [("postgres",)]


@pytest.mark.parametrize("statement", ["CREATE TABLE mine (id int)", "CREATE SCHEMA mine", "DROP TABLE kept", "TRUNCATE kept"])
def test_application_role_is_refused_what_the_owner_may(servers: Servers, statement: str) -> None:
    with psycopg.connect(servers.urls.owner) as owner:
        owner.execute("CREATE TABLE IF NOT EXISTS kept (id int)")
    with psycopg.connect(servers.urls.database) as app, pytest.raises(psycopg.errors.InsufficientPrivilege):
        app.execute(statement)


def test_roles_need_their_passwords(servers: Servers) -> None:
    url = servers.urls.owner
    password = url.split(":")[2].split("@")[0]
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(url.replace(password, "wrong"))


def test_servers_listen_on_private_sockets_only(servers: Servers) -> None:
    with psycopg.connect(servers.urls.superuser) as admin:
        assert admin.execute("SHOW listen_addresses").fetchone() == ("",)
        assert admin.execute("SHOW fsync").fetchone() == ("on",)
    assert redis.Redis.from_url(servers.urls.redis).config_get("port") == {"port": "0"}
    for folder in (postgres.sockets(servers.home), Path(servers.urls.redis.removeprefix("unix://")).parent):
        assert mode(folder) == 0o700


def test_layout_is_private(servers: Servers) -> None:
    embedded.environment(servers.home)
    assert mode(servers.home) & 0o066 == 0
    assert mode(servers.home / "env") == 0o600
    for name in ("run", "engines", "log", "valkey"):
        assert mode(servers.home / name) == 0o700
    data = postgres.folder(servers.home) / "data"
    assert mode(data) == mode(data.parent) == 0o700
    if os.geteuid() == 0:
        assert data.owner() == data.parent.owner() == "nobody"


def test_parents_keep_their_mode(home: Path) -> None:
    before = [mode(parent) for parent in home.parents]
    Servers(home).start()
    assert [mode(parent) for parent in home.parents] == before


def test_second_start_finds_the_data(home: Path) -> None:
    servers = Servers(home)
    servers.start()
    with psycopg.connect(servers.urls.owner) as owner:
        owner.execute("CREATE TABLE thing (id int)")
    servers.stop()
    assert living(home) == []
    servers.stop()
    Servers(home).start()
    with psycopg.connect(servers.urls.database) as app:
        assert app.execute("SELECT count(*) FROM thing").fetchone() == (0,)


def test_start_leaves_what_runs_alone(servers: Servers) -> None:
    before = (postgres.pid(servers.home), valkey.pid(servers.home))
    Servers(servers.home).start()
    assert (postgres.pid(servers.home), valkey.pid(servers.home)) == before


def test_start_succeeds_after_both_were_killed(home: Path) -> None:
    servers = Servers(home)
    servers.start()
    for pid in (postgres.pid(home), valkey.pid(home)):
        assert pid
        os.kill(pid, signal.SIGKILL)
    Servers(home).start()


def test_start_succeeds_when_what_it_found_running_dies(home: Path) -> None:
    Servers(home).start()
    found = postgres.pid(home)
    assert found
    os.kill(found, signal.SIGSTOP)  # alive, and answers nobody
    again = Servers(home)
    with ThreadPoolExecutor(1) as pool:
        started = pool.submit(again.start)
        waiting.until(lambda: "postgres" in again._children, 10, "it was looked at")
        os.kill(found, signal.SIGKILL)
        started.result(60)
    assert postgres.pid(home) not in (None, found)


def test_start_succeeds_when_the_lock_file_names_a_stranger(home: Path) -> None:
    servers = Servers(home)
    servers.start()
    lock = postgres.folder(home) / "data" / "postmaster.pid"
    content = lock.read_text()
    servers.stop()
    lock.write_text("\n".join([str(os.getpid()), *content.split("\n")[1:]]))
    (postgres.sockets(home) / ".s.PGSQL.5432.lock").write_text(f"{os.getpid()}\n")
    servers.start()
    assert postgres.pid(home) not in (None, 0, os.getpid())


@pytest.mark.parametrize("name", ["x" * LONGEST_SOCKET, "50% of one, #2"])
def test_start_succeeds_in_an_awkward_folder(tmp_path: Path, name: str) -> None:
    servers = Servers(tmp_path / name)
    short = Path(servers.urls.redis.removeprefix("unix://")).parent
    try:
        servers.start()
        assert mode(short) == 0o700
        assert short.parent == Path("/tmp")
    finally:
        servers.remove()
    assert not short.exists()


def test_start_refuses_data_of_another_version(home: Path) -> None:
    servers = Servers(home)
    servers.prepare()
    (postgres.folder(home) / "data" / "PG_VERSION").write_text("9\n")
    with pytest.raises(Refused, match="was made by PostgreSQL 9"):
        servers.start()


def test_start_refuses_data_of_other_secrets(home: Path) -> None:
    Servers(home).prepare()
    (home / "env").unlink()
    with pytest.raises(Refused, match="made with other secrets"):
        Servers(home).start()


def test_start_names_the_log_when_a_server_cannot_start(home: Path) -> None:
    servers = Servers(home, ("postgres",))
    servers.prepare()
    with (postgres.folder(home) / "data" / "postgresql.conf").open("a") as conf:
        conf.write("no_such_setting = 1\n")
    with pytest.raises(Refused, match=r"postgres does not start: see .*postgres\.log"):
        servers.start()
    assert "no_such_setting" in (home / "log" / "postgres.log").read_text()


# -- Environment -------------------------------------------------------------------------------------------------------


def test_environment_is_generated_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ORCH_DATABASE_URL", raising=False)
    first = embedded.environment(home)
    assert embedded.environment(home) == first
    assert set(first) == {
        "ORCH_HOME", "ORCH_SECRET_KEY", "ORCH_MASTER_KEY", "ORCH_ADMIN_KEY",
        "ORCH_DATABASE_URL", "ORCH_DATABASE_OWNER_URL", "ORCH_REDIS_URL", "ORCH_DEPLOYMENT",
    }  # fmt: skip
    assert living(home) == []


def test_environment_has_no_owner_for_a_database_of_ones_own(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCH_DATABASE_URL", "postgresql://db.example/fleet")
    assert "ORCH_DATABASE_OWNER_URL" not in embedded.environment(home)


def test_environment_is_the_same_for_processes_that_race(home: Path) -> None:
    command = [sys.executable, "-c", "from config.local import embedded as e; print(sorted(e.environment(e.home()).items()))"]
    racers = [subprocess.Popen(command, cwd=BASE_DIR, env=environment(home), stdout=subprocess.PIPE, text=True) for _ in range(8)]
    assert len({racer.communicate(timeout=60)[0] for racer in racers}) == 1
    assert [racer.returncode for racer in racers] == [0] * 8


@pytest.mark.parametrize("place", ["/dev/null/home", "/proc/home"])
def test_environment_refuses_a_folder_that_cannot_be(place: str) -> None:
    with pytest.raises(Refused, match=f"cannot write to {place}"):
        embedded.environment(Path(place))


def test_home_counts_from_the_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ORCH_HOME", ".local-2")
    assert embedded.home() == BASE_DIR / ".local-2"
    monkeypatch.delenv("ORCH_HOME")
    assert embedded.home() == BASE_DIR / ".local"


# -- manage.py ---------------------------------------------------------------------------------------------------------


def hold(home: Path) -> subprocess.Popen[str]:
    """A manage.py that has the servers up and waits for its stdin to close."""
    code = "import sys; print('in', flush=True); sys.stdin.read()"
    command = [sys.executable, "manage.py", "shell", "--no-imports", "-c", code]
    process = subprocess.Popen(
        command, cwd=BASE_DIR, env=environment(home), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "in\n"
    return process


def let_go(process: subprocess.Popen[str]) -> None:
    process.communicate(timeout=60)
    assert process.returncode == 0


def test_manage_starts_servers_that_are_down_and_stops_them(home: Path) -> None:
    process = hold(home)
    assert postgres.pid(home)
    assert valkey.pid(home)
    let_go(process)
    assert living(home) == []


def test_manage_shares_servers_and_the_last_one_stops_them(home: Path) -> None:
    first = hold(home)
    second = hold(home)
    pids = (postgres.pid(home), valkey.pid(home))
    let_go(first)
    assert (postgres.pid(home), valkey.pid(home)) == pids
    let_go(second)
    assert living(home) == []


def test_manage_takes_over_from_one_that_was_killed(home: Path) -> None:
    killed = hold(home)
    killed.kill()
    killed.communicate()
    assert postgres.pid(home)
    let_go(hold(home))
    assert living(home) == []


def test_manage_stops_servers_on_sigterm(home: Path) -> None:
    process = hold(home)
    process.terminate()
    process.communicate(timeout=60)
    waiting.until(lambda: living(home) == [], 20, "nothing is left running")


def test_manage_leaves_servers_of_others_alone(home: Path) -> None:
    servers = Servers(home)
    servers.start()
    let_go(hold(home))
    assert postgres.pid(home)
    assert valkey.pid(home)


def test_missing_names_what_the_environment_does_not_replace(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ORCH_ENVIRONMENT", "ORCH_DATABASE_URL", "ORCH_REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    assert Servers.missing(home).wanted == ("postgres", "valkey")
    monkeypatch.setenv("ORCH_DATABASE_URL", "postgresql://db.example/fleet")
    assert Servers.missing(home).wanted == ("valkey",)
    monkeypatch.setenv("ORCH_ENVIRONMENT", "production")
    assert Servers.missing(home).wanted == ()
