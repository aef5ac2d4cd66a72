"""Django's PostgreSQL backend, with a pool of our own and with errors that give a connection up.

The pool is made here because Django has no setting for the pool's class. An alias without a pool holds its session: its entry in
DATABASES has a `SESSION`, the parameters of PostgreSQL that are set for as long as the session lasts.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any, ClassVar

import psycopg
from django.db import DEFAULT_DB_ALIAS, connections
from django.db.backends.base.base import NO_DB_ALIAS
from django.db.backends.postgresql import base
from django.db.utils import DatabaseErrorWrapper

from common.pooled import sessions
from common.pooled.errors import ErrorWrapper, is_useless_after
from common.pooled.pool import Pool
from common.pooled.silence import Connection


@contextmanager
def unpooled() -> "Iterator[psycopg.Connection[Any]]":
    """A connection of the application's role for the block, without the pool and without Django. Raises django.db.Error.

    For a process that forks afterwards: the threads of a pool do not survive a fork, and receivers of Django's signal for new
    connections use the pool. Nor does anything wait for a database that is away.
    """
    usual = connections[DEFAULT_DB_ALIAS]
    parameters = usual.get_connection_params()
    with DatabaseErrorWrapper(usual), psycopg.connect(**parameters, autocommit=True) as connection:
        yield connection


class DatabaseWrapper(base.DatabaseWrapper):
    """Django's own wrapper, except for the pool, the look at new sessions, and the errors."""

    _connection_pools: ClassVar[dict[str, Pool]] = {}
    connection: Connection | None

    @property
    def pool(self) -> Pool | None:
        options = self.settings_dict["OPTIONS"].get("pool")
        if self.alias == NO_DB_ALIAS or not options:
            return None
        if self.alias not in self._connection_pools:
            kwargs = {**self.get_connection_params(), "autocommit": True}
            self._connection_pools.setdefault(self.alias, Pool(kwargs=kwargs, set_up=self._configure_connection, **options))
        return self._connection_pools[self.alias]

    def _configure_connection(self, connection: Connection) -> bool:
        """Called by Django for each new connection, and by the pool for each of its own."""
        if (session := self.settings_dict.get("SESSION")) is not None:
            sessions.claim(connection, session)
        return bool(super()._configure_connection(connection))  # type: ignore[misc]

    @cached_property
    def wrap_database_errors(self) -> ErrorWrapper:
        return ErrorWrapper(self)

    def give_up(self, error: psycopg.Error) -> None:
        """Close the connection after an error that says that it is of no use, and look anew at all others of the pool."""
        if self.pool is not None:
            self.pool.empty(read_only=isinstance(error, psycopg.errors.ReadOnlySqlTransaction))
        if self.connection is not None:
            self.connection.close()
        if not self.in_atomic_block:  # the end of a block closes by itself
            self.close()

    def check_writable(self) -> None:
        """Ask PostgreSQL on a connection as any request has it. Raises django.db.Error if the database cannot be written."""
        with self.cursor() as cursor, self.wrap_database_errors:
            sessions.check_writable(cursor)

    @contextmanager
    def lend(self) -> "Iterator[psycopg.Connection[Any]]":
        """Lend a connection of the pool for a single statement, without Django's set-up. Raises psycopg.Error."""
        pool = self.pool
        assert pool is not None
        pool.open()
        connection = pool.getconn()
        try:
            yield connection
        except psycopg.Error as error:
            if is_useless_after(error):
                connection.close()
            raise
        finally:
            pool.putconn(connection)
