"""`admit` on one process of the shipped web server, compared with two applications in `bench/peers/` with identical steps."""

import contextlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import requests
from django.core.management.base import CommandError

from bench import registry, servers
from bench.figures import percentile
from bench.servers import Server
from common.settings import settings

OURS, SQLALCHEMY, ASYNCPG = "Roundhouse", "FastAPI + SQLAlchemy", "raw asyncpg"
LOAD = "bench.peers.load"
PEERS = {SQLALCHEMY: "bench.peers.fastapi_sqlalchemy", ASYNCPG: "bench.peers.raw_asyncpg"}
LIMITS = {SQLALCHEMY: (0.8, 1.0), ASYNCPG: (0.25, 0.35)}  # ratio of our rate to the rate of the application: limit and aim
POLICY = {"max_engines": 1_000_000, "rate_limit_rpm": 1_000_000_000}
WARM_UP_S = 1.0


@dataclass(frozen=True)
class Round:
    """Result of a server in a round: requests per second, seconds of every request, and processor seconds per request."""

    rate: float
    seconds: list[float]
    cpu_s: float


def _python() -> Path:
    """The Python of the applications' own virtual environment. Raises CommandError if the environment is not installed."""
    python = Path(settings.BASE_DIR) / ".venv-bench" / "bin" / "python"
    if not python.exists():
        raise CommandError("the applications to compare with are not installed: run `make bench-venv`")
    return python


@contextlib.contextmanager
def started(log: IO[bytes]) -> Iterator[list[Server]]:
    """Run the three servers: a worker process per server, and as many PostgreSQL connections as our server has threads."""
    env = settings.ENV
    theirs = {
        "BENCH_DATABASE_URL": env.database_url,
        "BENCH_REDIS_URL": env.redis_url,
        "BENCH_MASTER_KEYS": ",".join(env.master_keys),
        "BENCH_URL_TEMPLATE": env.url_template,
        "BENCH_CONNECTIONS": str(env.web_threads),
        "BENCH_DISK_MB": str(env.engine_disk_mb),
    }
    with contextlib.ExitStack() as stack:
        port = servers.free_port()
        ours = {"ORCH_PORT": str(port), "ORCH_WEB_WORKERS": "1", "ORCH_PROCESS": "web"}
        argv = [sys.executable, "-m", "config.processes", "exec", "web"]
        up = [stack.enter_context(servers.running(OURS, argv, port, ours, log))]
        for name, module in PEERS.items():
            port = servers.free_port()
            quiet = ["--no-access-log", "--log-level", "warning", "--loop", "uvloop", "--http", "httptools"]
            argv = [str(_python()), "-m", "uvicorn", f"{module}:app", "--port", str(port), *quiet]
            up.append(stack.enter_context(servers.running(name, argv, port, theirs, log)))
        yield up


def check(up: list[Server], key: str) -> None:
    """Raise CommandError unless all servers answer an admit alike: status, body, and the names of the rate limit headers.

    An admit of a missing engine must give the reason `engine_not_found`, and a wrong platform key status 401.
    """
    answers: list[tuple[str, Any, Any]] = []
    for server in up:
        answer = requests.post(f"{server.url}/engines/user-0/admit", json={}, headers={"X-Platform-Key": key}, timeout=30)
        limits = sorted(name.lower() for name in answer.headers if name.lower().startswith("ratelimit-"))
        answers.append((server.name, answer.status_code, (answer.json(), limits)))
        missing = requests.post(f"{server.url}/engines/nobody/admit", json={}, headers={"X-Platform-Key": key}, timeout=30).json()
        refused = requests.post(f"{server.url}/engines/user-0/admit", json={}, headers={"X-Platform-Key": "x"}, timeout=30)
        if missing.get("reason") != "engine_not_found" or refused.status_code != 401:
            raise CommandError(f"{server.name}: a missing engine gives {missing}, a wrong key {refused.status_code}")
    name, status, whole = answers[0]
    if status != 200 or not whole[0]["admitted"] or len(whole[1]) != 3:
        raise CommandError(f"{name} does not admit: {status} {whole}")
    for other, *rest in answers[1:]:
        if rest != [status, whole]:
            raise CommandError(f"{other} answers {rest}, {name} {[status, whole]}")


def load(server: Server, key: str, *, seconds: float, connections: int, users: int) -> Round:
    """Load a server for `seconds`. Raises CommandError if any answer is not an admit."""
    _, elsewhere = servers.processors()
    before = server.cpu_s()
    arguments = [server.url, str(seconds), str(connections), str(users)]
    done = subprocess.run(
        [str(_python()), "-m", LOAD, *arguments], input=key.encode(), stdout=subprocess.PIPE, check=True,
        cwd=settings.BASE_DIR, preexec_fn=lambda: os.sched_setaffinity(0, elsewhere),
    )  # fmt: skip
    result = json.loads(done.stdout)
    if set(result["statuses"]) != {"200"}:
        raise CommandError(f"{server.name}: not every answer is an admit: {result['statuses']}")
    count = len(result["seconds"])
    return Round(count / result["took_s"], result["seconds"], (server.cpu_s() - before) / count)


def measure(rounds: int, seconds: float, connections: int, users: int, log: IO[bytes]) -> dict[str, list[Round]]:
    """The rounds by server name. The servers alternate, and all rounds use one set of engines."""
    results: dict[str, list[Round]] = {OURS: [], SQLALCHEMY: [], ASYNCPG: []}
    with registry.product(POLICY, users) as (_, key), started(log) as up:
        check(up, key)
        for server in up:
            load(server, key, seconds=WARM_UP_S, connections=connections, users=users)
        for _ in range(rounds):
            for server in up:
                taken = load(server, key, seconds=seconds, connections=connections, users=users)
                results[server.name].append(taken)
    return results


def report(results: Mapping[str, list[Round]]) -> tuple[str, bool]:
    """The table with the ratios (medians of the rounds), and whether every limit holds."""
    lines = [f"{'':22}   requests/s   p50 ms   p99 ms   CPU ms/request"]
    for name, rounds in results.items():
        every = [second for taken in rounds for second in taken.seconds]
        p50, p99 = (percentile(every, share) * 1000 for share in (0.5, 0.99))
        rate, cpu_s = (statistics.median(getattr(taken, field) for taken in rounds) for field in ("rate", "cpu_s"))
        lines.append(f"{name:22} {rate:12.0f} {p50:8.1f} {p99:8.1f} {cpu_s * 1000:16.2f}")
    holds = True
    for name, (least, aim) in LIMITS.items():
        ratio = statistics.median(a.rate / b.rate for a, b in zip(results[OURS], results[name], strict=True))
        holds &= ratio >= least
        lines.append(f"{'PASS' if ratio >= least else 'FAIL'}  {ratio:.2f} x {name} (at least {least}, aim {aim})")
    return "\n".join(lines), holds
