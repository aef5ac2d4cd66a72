"""A pool of connections that recovers at once from a server that was restarted, demoted or made read-only.

psycopg's pool finds broken connections one by one, with a pause after every find: a process with a dozen idle connections would
refuse requests for a minute. Here the first connection that is found broken, or of no use, empties the pool. Each new connection
is asked whether its session can write, before the pool takes it.
"""

import select
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psycopg
from psycopg_pool import ConnectionPool, PoolTimeout

from common.outages import POSTGRESQL
from common.pooled import sessions
from common.pooled.errors import NotWritable
from common.pooled.silence import Connection, Doubt

ASK_EVERY_S = 0.5
DRAIN_EVERY_S = 1.0  # threads find broken connections simultaneously: emptying the pool once is enough


class Pool(ConnectionPool[Connection]):
    """Hands out connections that were able to write when they were made, and have had no news from the server since."""

    def __init__(self, *, set_up: Callable[[Connection], object], **options: Any) -> None:
        self._set_up = set_up
        self._silence = Doubt(options["kwargs"])
        self._guard = threading.Lock()
        self._emptied_at = float("-inf")
        self._doubted_at: float | None = None  # when a session was last seen that cannot write; None once one can again
        super().__init__(connection_class=Connection, open=False, configure=self._take_on, check=self._look_at, **options)

    def getconn(self, timeout: float | None = None) -> Connection:
        """A connection, asked for every ASK_EVERY_S seconds. Raises NotWritable, PoolTimeout.

        psycopg's pool connects only on a request: after a failed connect, the remaining requests would go on waiting.
        """
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        while (left := deadline - time.monotonic()) > ASK_EVERY_S:
            with suppress(PoolTimeout):
                return self._get(ASK_EVERY_S)
        try:
            return self._get(max(0.0, left))
        except PoolTimeout as error:
            if self._doubted_at is not None:
                raise NotWritable("the database can be read, but not written") from error
            raise

    def _get(self, timeout: float) -> Connection:
        connection = super().getconn(timeout)
        POSTGRESQL.answered()
        return connection

    def empty(self, *, read_only: bool = False) -> None:
        """Close all connections: idle connections now, the others when they come back. At most once in DRAIN_EVERY_S.

        `read_only`: whether the reason is a session that cannot write.
        """
        now = time.monotonic()
        with self._guard:
            if read_only:
                self._doubted_at = now
            if now - self._emptied_at < DRAIN_EVERY_S:
                return
            self._emptied_at = now
        self.drain()

    def _take_on(self, connection: Connection) -> None:
        """Set up a new connection. Raises psycopg.Error, and the pool does not take the connection, if it cannot write."""
        connection.is_hopeless = self._silence.is_confirmed
        doubted_at = self._doubted_at
        try:
            sessions.take_on(connection, None if doubted_at is None else time.monotonic() - doubted_at)
        except psycopg.Error as error:
            connection.close()  # psycopg's pool leaves this to the garbage collector
            if isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
                self._doubted_at = time.monotonic()
            raise
        self._doubted_at = None
        self._set_up(connection)

    def _look_at(self, connection: Connection) -> None:
        """Called before use: raises if the connection is broken, and closes all idle connections.

        The end of a connection arrives as bytes or as an end of file from the server or its kernel. While nothing unexpected has
        arrived, the look saves the round trip of a test statement.
        """
        if not connection.closed and not _has_news(connection.fileno()):
            return
        try:
            ConnectionPool.check_connection(connection)
        except psycopg.Error:
            self.empty()
            raise


def _has_news(descriptor: int) -> bool:
    """Whether the socket has bytes or an end of file to read."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))
