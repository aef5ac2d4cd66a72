"""Another cluster with a restored dump of the run's database."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from config.local import postgres
from config.local.embedded import Servers
from tests import kinds, servers
from tests.fleet.test_roles import run


@contextmanager
@kinds.needs("embedded")
def restored(folder: Path) -> Iterator[Servers]:
    """A second cluster with the run's database as it is now, brought there as docs/operations.md says."""
    kinds.require("embedded")
    cluster = Servers(folder / "home", ("postgres",))
    cluster.start()
    dump = str(folder / "roundhouse.dump")
    try:
        with psycopg.connect(cluster.urls.superuser, autocommit=True) as fresh:
            fresh.execute(f"ALTER SCHEMA public OWNER TO {postgres.OWNER}")
        run("pg_dump", "--format=custom", f"--file={dump}", servers.SERVERS.urls.owner)
        run("pg_restore", "--exit-on-error", "--schema=public", f"--dbname={cluster.urls.owner}", dump)
        yield cluster
    finally:
        cluster.remove()


def promote(cluster: Servers) -> None:
    """Recover the cluster to an earlier time: like the promotion of a standby, the recovery ends with a new timeline."""
    cluster.stop()
    data = postgres.folder(cluster.home) / "data"
    (data / "recovery.signal").touch()
    with (data / "postgresql.auto.conf").open("a") as settings:
        settings.write("restore_command = 'false'\nhot_standby = off\n")
    cluster.start()
