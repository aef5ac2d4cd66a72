"""What tests of the log need: its months as they choose, connections as each role, and an audit insert that fails."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from common import context
from tests import servers

LEAVES = r"^audit_log_(standard|probe)_\d{4}_\d{2}$"
MONTH = "(date_trunc('month', now() AT TIME ZONE 'UTC') + make_interval(months => %s)) AT TIME ZONE 'UTC'"


class Months:
    """The partitions of the log. Months are counted from the present one, 0."""

    def __init__(self, superuser: psycopg.Connection[Any]) -> None:
        self.superuser = superuser

    def lay_out(self, first: int, last: int) -> None:
        """Partitions and window from month `first` to `last`, and no other, all of them empty."""
        for name in self.tables():
            self.superuser.execute(f"DROP TABLE {name}")
        self.superuser.execute("DELETE FROM audit_window")
        with psycopg.connect(servers.SERVERS.urls.owner, autocommit=True) as owner:
            for kind in ("standard", "probe"):
                for month in range(first, last + 1):
                    owner.execute(f"SELECT audit_add_month(%s, ({MONTH} AT TIME ZONE 'UTC')::date)", [kind, month])

    def name(self, month: int, kind: str = "standard") -> str:
        text = self.superuser.execute(f"SELECT to_char({MONTH} AT TIME ZONE 'UTC', 'YYYY_MM')", [month]).fetchone()[0]
        return f"audit_log_{kind}_{text}"

    def at(self, month: int, days: float = 1.0) -> Any:
        """A moment in the month, `days` after its start."""
        moment = self.superuser.execute(f"SELECT {MONTH} + make_interval(secs => %s)", [month, days * 86_400])
        return moment.fetchone()[0]

    def first_kept(self, days: int) -> int:
        """The month that was `days` ago."""
        months = self.superuser.execute(
            "SELECT age(%s, date_trunc('month', now() - make_interval(days => %s)))", [self.at(0, 0), days]
        )
        return -round(months.fetchone()[0].days / 30.4)

    def tables(self) -> list[str]:
        """Every table of a month, attached or not."""
        rows = self.superuser.execute("SELECT relname FROM pg_class WHERE relkind = 'r' AND relname ~ %s ORDER BY 1", [LEAVES])
        return [name for (name,) in rows.fetchall()]

    def attached(self, kind: str = "standard") -> list[str]:
        rows = self.superuser.execute(
            "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = %s::regclass ORDER BY 1", [f"audit_log_{kind}"]
        )
        return [name for (name,) in rows.fetchall()]

    def window(self, kind: str = "standard") -> tuple[Any, Any]:
        return self.superuser.execute("SELECT starts, ends FROM audit_window WHERE retention = %s", [kind]).fetchone()


@pytest.fixture(autouse=True)
def _no_request() -> None:
    """No call of an earlier test in the rows of this one."""
    context.enter(None)


@pytest.fixture
def months(db: None, superuser: psycopg.Connection[Any]) -> Iterator[Months]:
    """The log's months, to be laid out as a test needs them, and as they were after it."""
    months = Months(superuser)
    yield months
    months.lay_out(-1, 3)


@pytest.fixture
def as_owner(db: None) -> Iterator[psycopg.Connection[Any]]:
    """A connection with the owner's role."""
    with psycopg.connect(servers.SERVERS.urls.owner, autocommit=True) as connection:
        yield connection


@pytest.fixture
def as_app(db: None) -> Iterator[psycopg.Connection[Any]]:
    """A connection with the application's role."""
    with psycopg.connect(servers.SERVERS.urls.database, autocommit=True) as connection:
        yield connection


@pytest.fixture
def broken_log(db: None, superuser: psycopg.Connection[Any]) -> Callable[[], Any]:
    """A context in which PostgreSQL refuses every insert into the log."""

    @contextlib.contextmanager
    def broken() -> Iterator[None]:
        superuser.execute(
            "CREATE FUNCTION refuse_insert() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE EXCEPTION 'the log is broken'; END $$"
        )
        superuser.execute("CREATE TRIGGER broken BEFORE INSERT ON audit_log FOR EACH ROW EXECUTE FUNCTION refuse_insert()")
        try:
            yield
        finally:
            superuser.execute("DROP FUNCTION refuse_insert CASCADE")

    return broken


@pytest.fixture
def keep(settings):
    """Set for how many days rows are kept."""

    def set_days(standard, probe=14):
        settings.ENV = settings.ENV.model_copy(update={"audit_retention_days": standard, "audit_probe_retention_days": probe})

    return set_days
