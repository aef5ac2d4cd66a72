"""Django's PostgreSQL backend, with a pool that recovers from a restart of the server at once.

psycopg's pool finds broken connections one by one, with a pause after every find: a process with a dozen idle connections would
refuse requests for a minute. Here the first broken connection empties the pool. The pool is made here because Django has no
setting for the pool's check.
"""

import select
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, ClassVar

import psycopg
from django.db.backends.base.base import NO_DB_ALIAS
from django.db.backends.postgresql import base
from psycopg_pool import ConnectionPool, PoolTimeout

ASK_EVERY_S = 0.5
DRAIN_EVERY_S = 1.0  # threads find broken connections simultaneously: emptying the pool once is enough


class Check:
    """Called with a connection before use: raises if the connection is broken, and closes all idle connections in the pool.

    The end of a connection arrives as bytes or as an end of file from the server or its kernel. While nothing unexpected has
    arrived, the check saves the round trip of a test statement.
    """

    def __init__(self) -> None:
        self.pool: ConnectionPool[Any] | None = None
        self._emptied_at = float("-inf")

    def __call__(self, connection: "psycopg.Connection[Any]") -> None:
        if not connection.closed and not _has_news(connection.fileno()):
            return
        try:
            ConnectionPool.check_connection(connection)
        except psycopg.Error:
            if self.pool is not None and time.monotonic() - self._emptied_at > DRAIN_EVERY_S:
                self._emptied_at = time.monotonic()
                self.pool.drain()
            raise


def _has_news(descriptor: int) -> bool:
    """Whether the socket has bytes or an end of file to read."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


class Pool(ConnectionPool["psycopg.Connection[Any]"]):
    """Repeats a request for a connection every ASK_EVERY_S seconds.

    psycopg's pool connects only on a request: after a failed connect, the remaining requests would go on waiting.
    """

    def getconn(self, timeout: float | None = None) -> "psycopg.Connection[Any]":
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        while (left := deadline - time.monotonic()) > ASK_EVERY_S:
            with suppress(PoolTimeout):
                return super().getconn(ASK_EVERY_S)
        return super().getconn(max(0.0, left))


class DatabaseWrapper(base.DatabaseWrapper):
    """Django's own wrapper, except for the pool."""

    _connection_pools: ClassVar[dict[str, ConnectionPool[Any]]] = {}

    @property
    def pool(self) -> "ConnectionPool[Any] | None":
        options = self.settings_dict["OPTIONS"].get("pool")
        if self.alias == NO_DB_ALIAS or not options:
            return None
        if self.alias not in self._connection_pools:
            check = Check()
            check.pool = Pool(
                kwargs={**self.get_connection_params(), "autocommit": True},
                open=False,
                configure=self._configure_connection,  # type: ignore[attr-defined]
                check=check,
                **options,
            )
            self._connection_pools.setdefault(self.alias, check.pool)
        return self._connection_pools[self.alias]

    @contextmanager
    def lend(self) -> "Iterator[psycopg.Connection[Any]]":
        """Lend a connection of the pool for a single statement, without Django's set-up. Raises PoolTimeout."""
        pool = self.pool
        assert pool is not None
        pool.open()
        connection = pool.getconn()
        try:
            yield connection
        finally:
            pool.putconn(connection)
