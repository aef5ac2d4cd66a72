"""`manage.py audit_check` of a large log that agrees, on a PostgreSQL of its own with its default settings."""

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench import large_log, own_deployment
from bench.own_deployment import Own
from config.local.embedded import Servers

ROWS = 10_000_000
LIMIT_S = 60.0  # for ROWS
_SUM = "from audit import sums; sums.keep(run_s=36000)"


@dataclass(frozen=True)
class Took:
    """Seconds of one part, and what the part is."""

    what: str
    seconds: float


def measure(rows: int, tell: Callable[[str], object]) -> Iterator[Took]:
    """Fill a log with about `rows` rows, telling each step, and measure the sums, a whole check, and a check since it."""
    with _database() as (own, superuser):
        for step in large_log.fill(superuser, rows):
            tell(f"writing {step} ...")
        yield _timed("the keeper's first sums of all rows", lambda: own.run("manage.py", "shell", "-c", _SUM))
        yield _timed("audit_check", lambda: own.run("manage.py", "audit_check"))
        yield _timed("audit_check --since last", lambda: own.run("manage.py", "audit_check", "--since", "last"))


def _timed(what: str, run: Callable[[], str]) -> Took:
    began = time.monotonic()
    run()
    return Took(what, time.monotonic() - began)


@contextlib.contextmanager
def _database() -> Iterator[tuple[Own, str]]:
    """A migrated PostgreSQL without rows, and its superuser's URL; ended and deleted afterwards."""
    home = Path(tempfile.mkdtemp(prefix="roundhouse-bench-"))
    home.chmod(0o711)
    own = Own(home, ORCH_ENGINE_BACKEND="memory")
    servers = Servers(home)
    try:
        own.run("manage.py", "migrate", "--noinput")
        own.start(*own_deployment.SERVERS)
        servers.wait()
        yield own, servers.urls.superuser
    finally:
        own.close()
        shutil.rmtree(home, ignore_errors=True)


def report(rows: int, parts: list[Took]) -> tuple[str, bool]:
    """A line per part, and whether the whole check holds its limit: in proportion to the rows, from a million on."""
    limit = LIMIT_S * max(rows, 1_000_000) / ROWS
    [whole] = [part.seconds for part in parts if part.what == "audit_check"]
    lines = [f"{part.what:40} {part.seconds:8.1f} s" for part in parts]
    verdict = "PASS" if whole <= limit else "FAIL"
    return "\n".join([*lines, f"{verdict}  {rows} rows checked in {whole:.1f} s (at most {limit:.1f} s)"]), whole <= limit
