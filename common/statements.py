"""SQL written by hand: statements that are prepared once per connection, and time limits for statements.

Django's own cursors put the parameters into the text, and PostgreSQL then parses and plans every text anew. For a statement as
long as a move with its audit row, or as short as a read of the hot path, planning takes longer than executing. The ORM takes ten
times as long to compose a short read as PostgreSQL takes to answer.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Generic, TypeVar, cast

import psycopg
from django.db import OperationalError, connection, connections, transaction
from django.db.backends.utils import CursorWrapper
from django.db.models import JSONField, Model

LIMIT_S = 5.0
JOB_S = 600.0  # time limit of a statement of a periodic job that has no limit in rows
LIMITS = {"statement_timeout": "30s", "lock_timeout": "10s", "idle_in_transaction_session_timeout": "30s"}
"""Time limits of the application's role, set by `migrate`. They hold for every session that sets none of its own.

A lock is held for milliseconds unless its holder is stuck, a page of the admin takes a second, and no transaction waits for
anything outside the database.
"""
M = TypeVar("M", bound=Model)


def cursor(using: str = "default") -> AbstractContextManager[CursorWrapper]:
    """A cursor that prepares its statements, on Django's connection; Django's own cursor while queries are logged.

    The cursor takes part in the connection's transaction. A parameter with a type unclear to PostgreSQL needs a cast:
    `%(x)s::text`.
    """
    connection = connections[using]
    if connection.queries_logged:
        return connection.cursor()
    connection.ensure_connection()
    return connection.make_cursor(cast(CursorWrapper, psycopg.Cursor(connection.connection)))


class Columns(Generic[M]):
    """The columns of a model in a SELECT, with the table's `alias`: of all fields, or only of the fields `names`.

    `build` makes a model of a row from the result.
    """

    def __init__(self, model: type[M], alias: str, *names: str) -> None:
        fields = [field for field in model._meta.concrete_fields if not names or field.attname in names]
        self.model = model
        self.count = len(fields)
        self.sql = ", ".join(f"{alias}.{field.column}" for field in fields)
        self._names = [field.attname for field in fields]
        self._json = [at for at, field in enumerate(fields) if isinstance(field, JSONField)]

    def build(self, values: Sequence[Any]) -> M:
        """The model with the given values; a field outside the SELECT is read from the database on first access."""
        if self._json:
            values = [json.loads(value) if at in self._json else value for at, value in enumerate(values)]
        return self.model.from_db("default", self._names, values)


def first(statement: str, params: Sequence[Any]) -> tuple[Any, ...] | None:
    """The first row of the statement's result, or None. Raises django.db.Error.

    If the thread has a connection of Django's, the statement runs on the connection, within its transaction. Otherwise the
    statement runs on a connection of the pool, without Django's set-up, which takes several times as long as the statement.
    """
    if connection.connection is not None or connection.queries_logged:
        with cursor() as own:
            return _run(own, statement, params)
    with connection.wrap_database_errors, connection.lend() as lent:  # type: ignore[attr-defined]  # of `common.pooled`
        return _run(psycopg.Cursor(lent), statement, params)


def _run(cursor: Any, statement: str, params: Sequence[Any]) -> tuple[Any, ...] | None:
    cursor.execute(statement, params)
    row: tuple[Any, ...] | None = cursor.fetchone()
    return row


class TookTooLong(Exception):
    """PostgreSQL stopped a statement at its time limit."""


@contextmanager
def limited(seconds: float = LIMIT_S) -> Iterator[None]:
    """Run the block in a transaction whose statements may take `seconds` each. Raises TookTooLong."""
    try:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SELECT set_config('statement_timeout', %s, true)", [f"{seconds * 1000:.0f}"])
            yield
    except OperationalError as error:
        if isinstance(error.__cause__, psycopg.errors.QueryCanceled):
            raise TookTooLong from error
        raise


def unlimited(using: str = "default") -> None:
    """Lift all LIMITS for the rest of the transaction that is open."""
    with connections[using].cursor() as cursor:
        cursor.execute("SELECT set_config(name, '0', true) FROM unnest(%s::text[]) name", [list(LIMITS)])
