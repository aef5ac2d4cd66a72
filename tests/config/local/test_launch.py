import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from config.local import postgres, supervision, valkey
from config.local.embedded import Servers
from config.local.home import BASE_DIR
from tests import kinds, servers as run_servers, waiting
from tests.config.support import Run, environment, healthy, living, manage, stop_launchers

pytestmark = pytest.mark.deployment  # `make run`, also where it gives up

SECOND_START_S = 10.0
# Of a database that runs of several homes use: its master key, and its deployment, which a home would name by its path.
EXTERNAL = {"ORCH_MASTER_KEY": "oZ3yKpW2mJr4Xq8sT1vB6nC9dF0gH5jL7kM2pR4tU6w=", "ORCH_DEPLOYMENT": "external"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A `make run` that is up."""
    home = tmp_path_factory.mktemp("launch") / "home"
    run = Run(home, run_servers.free_port(), ORCH_PROCESSES="full")
    try:
        run.wait_for_banner()
        yield run
    finally:
        stop(run)
        Servers(home).remove()


def stop(run: Run) -> None:
    if run.make.poll() is None:
        run.signal_group(signal.SIGTERM)
        run.wait()


def make_product(run: Run) -> dict[str, str]:
    """Headers of a product that was registered with the printed key."""
    key = run.output.split("X-Admin-Key: ")[1].split("'")[0]
    body = {"slug": f"p{time.time_ns()}", "display_name": "Test"}
    answer = requests.post(f"http://127.0.0.1:{run.port}/products/register", json=body, headers={"X-Admin-Key": key}, timeout=60)
    return {"X-Platform-Key": answer.json()["platform_api_key"]}


def api(run: Run, method: str, path: str, headers: dict[str, str], **options: object) -> dict[str, object]:
    answer = requests.request(method, f"http://127.0.0.1:{run.port}{path}", headers=headers, timeout=90, **options)
    assert answer.ok, answer.text
    return answer.json()


def audit_rows(run: Run, headers: dict[str, str], action: str) -> list[dict[str, object]]:
    return api(run, "GET", f"/audit?action={action}", headers)["results"]  # type: ignore[return-value]


# -- While it runs -----------------------------------------------------------------------------------------------------


@pytest.mark.timeout(240)
def test_printed_lines_work_when_pasted(run: Run) -> None:
    for _ in range(2):
        paste(run)
        time.sleep(1)  # the slug is the second of the clock


def paste(run: Run) -> None:
    """Do as the banner says."""
    pasted = subprocess.run(["bash", "-eu"], input=run.tour(), capture_output=True, text=True, timeout=120)
    assert pasted.returncode == 0, pasted.stderr
    assert '"admitted":true' in pasted.stdout
    assert '"echo": "hello"' in pasted.stdout
    assert '"action":"provision"' in pasted.stdout
    assert '"status":"destroyed"' in pasted.stdout


def test_printed_password_opens_the_admin(run: Run) -> None:
    browser = requests.Session()
    login = f"http://127.0.0.1:{run.port}/admin/login/"
    browser.get(login, timeout=30)
    password = run.output.split("Password   ")[1].split()[0]
    form = {"username": "admin", "password": password, "csrfmiddlewaretoken": browser.cookies["csrftoken"], "next": "/admin/"}
    answer = browser.post(login, data=form, headers={"Referer": login}, timeout=30)
    assert urllib.parse.urlsplit(answer.url).path == "/admin/"
    assert answer.status_code == 200
    assert stat.S_IMODE((run.home / "admin-password").stat().st_mode) == 0o600


def test_manage_talks_to_the_same_servers(run: Run) -> None:
    pid = postgres.pid(run.home)
    code = "from policy.models import Product; print(Product.objects.filter(slug='seen-by-manage').count())"
    key = run.output.split("X-Admin-Key: ")[1].split("'")[0]
    body = {"slug": "seen-by-manage", "display_name": "Test"}
    requests.post(f"http://127.0.0.1:{run.port}/products/register", json=body, headers={"X-Admin-Key": key}, timeout=60)
    told = manage(run.home, "shell", "--no-imports", "-c", code)
    assert told.stdout.strip() == "1", told.stderr
    assert postgres.pid(run.home) == pid


@pytest.mark.parametrize("name", ["postgres", "valkey", "web", "wake", "ops", "background", "health", "keeper", "beat"])
def test_process_that_is_killed_comes_back(run: Run, name: str) -> None:
    victim = waiting.until(lambda: run.pid(name), 30, f"{name} runs")
    os.kill(victim, signal.SIGKILL)
    waiting.until(lambda: run.pid(name) not in (0, victim), 30, f"{name} runs again")
    waiting.until(lambda: healthy(run.port), 60, "the web server is healthy")


def test_system_works_after_every_process_was_killed(run: Run) -> None:
    go_through_a_life(run, "bob")


def test_second_copy_on_the_same_home_is_refused(run: Run) -> None:
    second = launch(run.home, run_servers.free_port())
    assert second.returncode == 1
    assert second.stderr == f"roundhouse: {run.home} is running already; start a second copy with another ORCH_HOME and PORT\n"
    assert healthy(run.port)


def test_up_is_said_after_a_message_of_each_queue_was_taken(run: Run) -> None:
    step = supervision.inspect(run.home)["await_workers"]
    assert (step["statename"], step["exitstatus"]) == ("EXITED", 0)


@pytest.fixture
def odd_home(home: Path) -> Iterator[Path]:
    """A home with a name that a format string, a shell, an INI file and a URL would each take apart."""
    path = home.with_name("100% %(here)s; it's #1 \\x ü")
    yield path
    stop_launchers(path)
    Servers(path).remove()


@pytest.mark.timeout(240)
def test_two_copies_run_side_by_side_whatever_the_name_of_the_home(run: Run, odd_home: Path) -> None:
    home = odd_home
    second = Run(home, run_servers.free_port())
    second.wait_for_banner()
    lasting = set(supervision.inspect(home)) - {"prepare", "await_workers", "stand_down"}
    assert (home / "log" / "web.log").exists()
    assert lasting == {"postgres", "valkey", "web", "worker", "keeper"}  # `small`, when nobody says so
    test_process_that_is_killed_comes_back(second, "worker")
    assert healthy(run.port)
    stop(second)
    assert living(home) == []
    assert healthy(run.port)


# -- What is in the way ------------------------------------------------------------------------------------------------


def launch(home: Path, port: int | str, **changes: str) -> subprocess.CompletedProcess[str]:
    """The launcher where it is expected to give up."""
    kinds.require("deployment")
    return subprocess.run(
        [sys.executable, "-m", "config.local.launch"],
        cwd=BASE_DIR, env=environment(home, PORT=str(port), **changes), capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def test_taken_port_is_refused_in_one_line(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = launch(home, port)
    assert refused.returncode == 1
    assert refused.stderr == f"roundhouse: port {port} is taken (Address already in use); choose another one: make run PORT=...\n"
    assert living(home) == []


def test_taken_ipv6_port_is_refused_in_one_line(home: Path) -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as taken:
        port = taken.getsockname()[1]
        refused = launch(home, port, ORCH_BIND="::1")
    assert refused.returncode == 1
    assert refused.stderr == f"roundhouse: port {port} is taken (Address already in use); choose another one: make run PORT=...\n"


def test_address_of_another_machine_is_refused_in_one_line(home: Path) -> None:
    port = run_servers.free_port()
    refused = launch(home, port, ORCH_BIND="192.0.2.1")
    assert refused.returncode == 1
    assert refused.stderr == f"roundhouse: cannot listen on 192.0.2.1:{port}: Cannot assign requested address; see ORCH_BIND\n"


@pytest.mark.parametrize("port", ["0", "70000", "web"])
def test_port_that_is_none_is_refused_in_one_line(home: Path, port: str) -> None:
    refused = launch(home, port)
    assert (refused.returncode, refused.stderr) == (1, f"roundhouse: PORT={port} is not a port number (1 to 65535)\n")


def test_folder_that_cannot_be_written_is_refused_in_one_line() -> None:
    refused = launch(Path("/proc/home"), run_servers.free_port())
    assert refused.returncode == 1
    assert refused.stderr.startswith("roundhouse: cannot write to /proc/home: ")
    assert refused.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["a\nb", "a\u2028b", "a\udcff"])
def test_home_that_cannot_be_printed_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    home = tmp_path / name
    refused = launch(home, run_servers.free_port())
    assert (refused.returncode, home.exists()) == (1, False)
    assert refused.stderr == f"roundhouse: ORCH_HOME={str(home)!r} has characters that cannot be printed; choose another folder\n"


def test_supervisor_that_does_not_start_says_why(home: Path, tmp_path: Path) -> None:
    (tmp_path / "setproctitle.py").write_text("raise ImportError('not for this processor')")
    refused = launch(home, run_servers.free_port(), PYTHONPATH=str(tmp_path))
    assert refused.returncode == 1
    log = home / "log" / "supervisor.log"
    reason = "ImportError: not for this processor"
    assert refused.stderr == f"roundhouse: the supervisor does not start: {reason} (see {log})\n"
    assert reason in log.read_text()
    assert living(home) == []


@pytest.mark.parametrize("name", [".", "home"])
def test_read_only_folder_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "readonly"
    folder.mkdir(mode=0o555)
    command = [sys.executable, "-m", "config.local.launch"]
    if os.geteuid() == 0:  # root may write anywhere; so it gives that up
        command = ["setpriv", "--bounding-set=-dac_override", *command]
    home = Path(os.path.normpath(folder / name))
    refused = subprocess.run(
        command,
        cwd=BASE_DIR,
        env=environment(home, PORT=str(run_servers.free_port())),
        capture_output=True,
        text=True,
        timeout=60,
    )
    reason = "Permission denied; choose another folder with ORCH_HOME=..."
    assert (refused.returncode, refused.stderr) == (1, f"roundhouse: cannot write to {home}: {reason}\n")
    assert list(folder.iterdir()) == []


def test_production_is_refused_in_one_line(home: Path) -> None:
    refused = launch(home, run_servers.free_port(), ORCH_ENVIRONMENT="production")
    assert refused.returncode == 1
    assert refused.stderr.startswith("roundhouse: `make run` is for local use")


def test_old_python_is_refused_in_one_line(tmp_path: Path) -> None:
    shutil.copy(BASE_DIR / "Makefile", tmp_path)
    for name in ("requirements.lock", "requirements-local.lock"):
        shutil.copy(BASE_DIR / name, tmp_path)
    old = tmp_path / "python3.8"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    refused = subprocess.run(["make", "run", f"PYTHON={old}"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert refused.returncode != 0
    assert refused.stderr.splitlines()[0].startswith("Roundhouse needs Python 3.11 or newer")


# -- Start and stop ----------------------------------------------------------------------------------------------------


@pytest.mark.timeout(300)
def test_stop_leaves_nothing_running_and_the_next_start_is_quick_and_resumes(home: Path) -> None:
    first = Run(home, run_servers.free_port())
    first.wait_for_banner()
    headers = make_product(first)
    engine = api(first, "POST", "/engines/carol/admit", headers, json={"auto_provision": True})["engine"]
    launcher = first.launcher
    first.signal_group(signal.SIGTERM)
    assert launcher.wait(60) in (0, None)
    first.wait()
    assert "roundhouse: stopped" in first.output
    assert living(home) == []

    began = time.monotonic()
    second = Run(home, first.port)
    second.wait_for_banner()
    took = time.monotonic() - began
    assert took < SECOND_START_S, f"load {os.getloadavg()}"
    waiting.until(lambda: api(second, "GET", "/engines/carol", headers)["status"] == "running", 30, "the engine is back")
    waiting.until(lambda: audit_rows(second, headers, "restart"), 30, "its restart is on record")
    (row,) = audit_rows(second, headers, "restart")
    assert row["engine_id"] == engine["engine_id"]
    assert row["metadata"]["cause"] == "reconciled"
    assert not audit_rows(second, headers, "health_failed")

    second.signal_group(signal.SIGINT)  # Ctrl-C
    second.wait()
    assert living(home) == []


@pytest.mark.timeout(300)
def test_run_is_found_where_it_listens_also_after_launcher_and_supervisor_were_killed(home: Path) -> None:
    """Each start listens somewhere else. The ends between them are the launcher's death, and then that of both."""
    first = listen(home, "127.0.0.2")
    check_found(first, "127.0.0.2")
    launcher = first.launcher
    supervisor = launcher.children()[0]
    assert supervisor.cmdline()[0].startswith("roundhouse: supervisor")
    launcher.kill()
    second = listen(home, "::1", first.port)
    check_found(second, "[::1]")
    launcher, supervisor = second.launcher, second.launcher.children()[0]
    launcher.suspend()  # otherwise it may notice, and end by itself
    supervisor.kill()
    launcher.kill()
    third = listen(home, "0.0.0.0", first.port)
    check_found(third, "127.0.0.1")
    third.launcher.terminate()
    assert third.wait() == 0
    assert living(home) == []


def listen(home: Path, bind: str, port: int | None = None) -> Run:
    """A run that is up, on that address, and answers to the name `fleet.lan`, too."""
    run = Run(home, port or run_servers.free_port(), ORCH_BIND=bind, ORCH_ALLOWED_HOSTS="fleet.lan")
    run.wait_for_banner()
    return run


def check_found(run: Run, host: str) -> None:
    """Whatever names it is to answer to, it is called by the address that it prints."""
    assert f"  Admin      http://{host}:{run.port}/admin/\n" in run.output
    assert requests.get(f"http://{host}:{run.port}/admin/login/", timeout=30).status_code == 200
    for name, code in (("fleet.lan", 200), ("evil.example", 400)):
        assert requests.get(f"http://{host}:{run.port}/health", headers={"Host": name}, timeout=30).status_code == code
    paste(run)


@pytest.mark.timeout(240)
def test_run_uses_servers_of_ones_own(home: Path, servers: Servers) -> None:
    urls = {
        "ORCH_DATABASE_URL": servers.urls.database,
        "ORCH_DATABASE_OWNER_URL": servers.urls.owner,
        "ORCH_REDIS_URL": servers.urls.redis,
        **EXTERNAL,
    }
    run = Run(home, run_servers.free_port(), **urls)
    run.wait_for_banner()
    assert (postgres.pid(home), valkey.pid(home)) == (None, None)
    go_through_a_life(run, "dave")
    stop(run)
    assert living(home) == []
    assert postgres.pid(servers.home)
    assert "warning" not in run.output


@pytest.mark.timeout(240)
def test_run_on_one_role_says_what_is_lost(home: Path, servers: Servers) -> None:
    run = Run(home, run_servers.free_port(), ORCH_DATABASE_URL=servers.urls.owner, **EXTERNAL)
    run.wait_for_banner()
    (warning,) = [line for line in run.output.splitlines() if "warning" in line]
    assert warning.startswith("roundhouse: warning: the application and the owner of the tables are one database role")
    go_through_a_life(run, "dave")
    stop(run)
    assert living(home) == []


def go_through_a_life(run: Run, user_id: str) -> None:
    """Make an engine for a user of a new product, and destroy it."""
    headers = make_product(run)
    api(run, "POST", f"/engines/{user_id}/admit", headers, json={"auto_provision": True})
    api(run, "DELETE", f"/engines/{user_id}", headers)


@pytest.mark.timeout(240)
def test_signal_to_one_process_stops_everything(home: Path) -> None:
    for whom, number in (("launcher", signal.SIGINT), ("make", signal.SIGTERM)):
        run = Run(home, run_servers.free_port())
        run.wait_for_banner()
        api(run, "POST", "/engines/erin/admit", make_product(run), json={"auto_provision": True})
        launcher = run.launcher
        os.kill(run.make.pid if whom == "make" else launcher.pid, number)
        run.wait()
        launcher.wait(60)
        assert "roundhouse: stopped" in run.output, whom
        assert living(home) == [], whom


@pytest.mark.timeout(240)
def test_stop_while_it_starts_leaves_nothing_running(home: Path) -> None:
    run = Run(home, run_servers.free_port())
    waiting.until(lambda: postgres.pid(home) if home.exists() else None, 60, "PostgreSQL has started")
    run.signal_group(signal.SIGINT)
    run.wait()
    assert living(home) == []
