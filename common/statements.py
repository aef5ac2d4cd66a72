"""SQL written by hand: statements that are prepared once per connection, and a limit on how long a statement may take.

Django's own cursors put the parameters into the text, so that PostgreSQL reads and plans each text anew. For a statement as long
as a move with its audit row, or as short as a read of the hot path, planning takes longer than carrying the statement out. To put
a short read together costs the ORM ten times what PostgreSQL takes to answer.
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
M = TypeVar("M", bound=Model)


def cursor(using: str = "default") -> AbstractContextManager[CursorWrapper]:
    """A cursor on Django's connection, in its transaction, that prepares what it executes. While queries are logged: Django's
    own.

    The server has to be told the types that it cannot infer: `%(x)s::text`.
    """
    connection = connections[using]
    if connection.queries_logged:
        return connection.cursor()
    connection.ensure_connection()
    return connection.make_cursor(cast(CursorWrapper, psycopg.Cursor(connection.connection)))


class Columns(Generic[M]):
    """The columns of a model in a SELECT, under the alias of its table; of all its fields, or of the fields with these `names`.

    A row that was read becomes a model again with `build`.
    """

    def __init__(self, model: type[M], alias: str, *names: str) -> None:
        fields = [field for field in model._meta.concrete_fields if not names or field.attname in names]
        self.model = model
        self.count = len(fields)
        self.sql = ", ".join(f"{alias}.{field.column}" for field in fields)
        self._names = [field.attname for field in fields]
        self._json = [at for at, field in enumerate(fields) if isinstance(field, JSONField)]

    def build(self, values: Sequence[Any]) -> M:
        """The model with these values; a field that was not selected is read when somebody asks for it."""
        if self._json:
            values = [json.loads(value) if at in self._json else value for at, value in enumerate(values)]
        return self.model.from_db("default", self._names, values)


def first(statement: str, params: Sequence[Any]) -> tuple[Any, ...] | None:
    """The first row that the statement gives, or None. Raises django.db.Error.

    Where this thread has a connection of Django's, it answers, within its transaction. Otherwise a connection of the pool answers
    without becoming Django's: to make it so takes several times as long as the statement.
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
    """A statement reached its time limit, and PostgreSQL stopped it."""


@contextmanager
def limited(seconds: float = LIMIT_S) -> Iterator[None]:
    """Inside the block, in a transaction, a statement may take so many seconds. Raises TookTooLong."""
    try:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SELECT set_config('statement_timeout', %s, true)", [f"{seconds * 1000:.0f}"])
            yield
    except OperationalError as error:
        if isinstance(error.__cause__, psycopg.errors.QueryCanceled):
            raise TookTooLong from error
        raise
