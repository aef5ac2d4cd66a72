"""Debian's PgBouncer in front of the run's PostgreSQL, with the settings that the documentation recommends."""

import configparser
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import psycopg
import pytest
from django.db import connections

from common.pooled.base import DatabaseWrapper
from config import settings
from config.local import postgres
from config.local.home import BASE_DIR, read_secrets
from tests import kinds, servers, waiting

PROGRAM = shutil.which("pgbouncer", path="/usr/sbin:/usr/bin")
RECOMMENDED = BASE_DIR / "deploy" / "pgbouncer.ini"


@kinds.needs("sql")
@contextmanager
def running(**settings: Any) -> Iterator[str]:
    """A PgBouncer for the block, with `settings` on top of the recommended ones; yields the URL of the application's role."""
    if PROGRAM is None:
        pytest.skip("needs pgbouncer (apt install pgbouncer)")
    folder = _lay_out(settings)
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen([PROGRAM, folder / "ini"], stdout=log, stderr=log, cwd="/", **postgres.identity(servers.HOME))
    try:
        waiting.until(lambda: _answers(folder), 10, "PgBouncer answers")
        yield url_of(folder, servers.SERVERS.urls.database)
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder)


@contextmanager
def leading(alias: str, url: str) -> Iterator[Any]:
    """Within the block, the connections of this process with that alias lead to `url`."""
    usual, pool = connections.settings[alias], DatabaseWrapper._connection_pools.pop(alias, None)
    own = settings._database(url)
    if pool is None:
        del own["OPTIONS"]["pool"]
    connections[alias].close()
    del connections[alias]
    connections.settings[alias] = {**usual, **own}
    try:
        yield connections[alias]
    finally:
        connections[alias].close()
        connections[alias].close_pool()
        del connections[alias]
        connections.settings[alias] = usual
        if pool is not None:
            DatabaseWrapper._connection_pools[alias] = pool


def url_of(folder: Path, direct: str) -> str:
    """The URL `direct`, through the PgBouncer of the folder."""
    user = urlsplit(direct)
    return f"postgresql://{user.username}:{user.password}@{quote(str(folder), safe='')}:6432/roundhouse"


def _lay_out(settings: dict[str, Any]) -> Path:
    folder = servers.HOME / "pgbouncer"
    folder.mkdir(mode=0o700)
    _write_settings(folder, settings)
    secrets = read_secrets(servers.HOME)
    roles = {postgres.APP: "APP", postgres.OWNER: "OWNER"}
    lines = [f'"{role}" "{secrets[f"POSTGRES_{name}_PASSWORD"]}"\n' for role, name in roles.items()]
    (folder / "userlist.txt").write_text("".join(lines))
    if owner := postgres.identity(servers.HOME):
        for path in (folder, *folder.iterdir()):
            shutil.chown(path, owner["user"], owner["group"])
    return folder


def _write_settings(folder: Path, settings: dict[str, Any]) -> None:
    """The recommended settings, with the servers and folders of the run."""
    written = configparser.ConfigParser(interpolation=None)
    written.read(RECOMMENDED)
    written["databases"]["roundhouse"] = f"host={postgres.sockets(servers.HOME)} port=5432 dbname=roundhouse"
    ours = {"listen_addr": "", "unix_socket_dir": folder, "auth_file": folder / "userlist.txt"}
    for name, value in {**ours, "log_connections": 0, "log_disconnections": 0, **settings}.items():
        written["pgbouncer"][name] = str(value)
    with open(folder / "ini", "w") as file:
        written.write(file)


def _answers(folder: Path) -> bool:
    try:
        psycopg.connect(url_of(folder, servers.SERVERS.urls.database), connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True
