"""Reads of the hot path, written by hand: to put such a query together costs the ORM ten times what PostgreSQL takes to answer.

Rows become models, made from the columns that `Columns` names in the statement.
"""

import json
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import psycopg
from django.db import connection
from django.db.models import JSONField, Model

from audit import statements

M = TypeVar("M", bound=Model)


class Columns(Generic[M]):
    """The columns of a model in a SELECT, under the alias of its table; of all its fields, or of those with the `names`."""

    def __init__(self, model: type[M], alias: str, *names: str) -> None:
        fields = [field for field in model._meta.concrete_fields if not names or field.attname in names]
        self.model = model
        self.count = len(fields)
        self.sql = ", ".join(f"{alias}.{field.column}" for field in fields)
        self._names = [field.attname for field in fields]
        self._json = [at for at, field in enumerate(fields) if isinstance(field, JSONField)]

    def build(self, values: Sequence[Any]) -> M:
        """The model of these values; a field that was not selected is read when somebody asks for it."""
        if self._json:
            values = [json.loads(value) if at in self._json else value for at, value in enumerate(values)]
        return self.model.from_db("default", self._names, values)


def first(statement: str, params: Sequence[Any]) -> tuple[Any, ...] | None:
    """The first row that the statement gives, or None. Raises django.db.Error.

    Django's connection answers where this thread has one, and the transaction with it. Otherwise one of its pool does, without
    becoming Django's: that takes several times as long as the statement.
    """
    if connection.connection is not None or connection.queries_logged:
        with statements.cursor() as cursor:
            return _run(cursor, statement, params)
    with connection.wrap_database_errors, connection.lend() as lent:  # type: ignore[attr-defined]  # of `config.pooled`
        return _run(psycopg.Cursor(lent), statement, params)


def _run(cursor: Any, statement: str, params: Sequence[Any]) -> tuple[Any, ...] | None:
    cursor.execute(statement, params)
    row: tuple[Any, ...] | None = cursor.fetchone()
    return row
