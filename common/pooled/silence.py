"""Statements that a server never answers: they end, once the server answers nobody else either.

PostgreSQL's own time limits hold only while PostgreSQL works. A frozen server, a disk that hangs, a lost route or a pooler whose
server is gone would hold each thread that has sent a statement, until no thread is left to say so.
"""

import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing
from typing import Any

import psycopg

PATIENCE_S = 3.0  # silence after which the server is asked whether it answers at all; most statements take milliseconds
ANSWER_S = 3.0  # for the answer, and again for the log-in before


class Silent(psycopg.OperationalError):
    """The server has not answered a statement for PATIENCE_S seconds, and does not answer a new connection either."""


class Connection(psycopg.Connection[Any]):
    """A connection that asks `is_hopeless`, with the seconds of silence, whether to go on waiting for an answer."""

    is_hopeless: Callable[[float], bool] | None = None

    def wait(self, gen: Generator[Any, Any, Any], *args: Any, **kwargs: Any) -> Any:
        if self.is_hopeless is not None:
            gen = _watched(gen, self.is_hopeless)
        return super().wait(gen, *args, **kwargs)


def _watched(gen: Generator[Any, Any, Any], is_hopeless: Callable[[float], bool]) -> Generator[Any, Any, Any]:
    """The same exchange with the server as `gen`. psycopg resumes it ten times a second while nothing arrives. Raises Silent."""
    since = time.monotonic()
    try:
        wanted = next(gen)
        while True:
            ready = yield wanted
            if not ready and is_hopeless(time.monotonic() - since):
                raise Silent("the database does not answer")
            wanted = gen.send(ready)
    except StopIteration as end:
        return end.value


class Doubt:
    """Whether the server answers at all, asked at most every PATIENCE_S seconds, by one thread for all."""

    def __init__(self, connection: dict[str, Any]) -> None:
        """`connection`: the parameters of psycopg for a connection to the server."""
        self._parameters = {**connection, "connect_timeout": round(ANSWER_S)}
        self._guard = threading.Lock()
        self._asked_at = float("-inf")
        self._is_silent = False

    def is_confirmed(self, silence_s: float) -> bool:
        """Whether a statement without an answer for so long is to be given up."""
        if silence_s < PATIENCE_S:
            return False
        if self._guard.acquire(blocking=False):
            try:
                if time.monotonic() - self._asked_at > PATIENCE_S:
                    self._is_silent = self._ask()
                    self._asked_at = time.monotonic()
            finally:
                self._guard.release()
        return self._is_silent and time.monotonic() - self._asked_at < PATIENCE_S

    def _ask(self) -> bool:
        """Whether the server is silent. An error that comes from the server, such as too many connections, is an answer."""
        try:
            with closing(Connection.connect(**self._parameters)) as connection:
                connection.is_hopeless = lambda silence_s: silence_s > ANSWER_S
                connection.execute("SELECT 1")
        except psycopg.Error as error:
            return error.sqlstate is None
        return False
