"""What this process depends on: a log line when it is away, and one when it is back, however often it is asked meanwhile."""

import threading
import time

import psycopg
import structlog
from django.db import Error, InterfaceError, OperationalError

QUIET_S = 2.0  # a success soon after a failure is no return: other threads may still fail
# Codes of PostgreSQL, or their beginnings. 08: the connection; 25006: the server refuses writes, as after a failover; 28: it
# refuses the role; 53300: it has no connection left; 57P: it is being stopped or started.
_AWAY = ("08", "25006", "28", "53300", "57P")
log = structlog.get_logger(__name__)


class Dependency:
    """A server that this process cannot work without. `failed` and `answered` may be called as often as wanted."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._since: float | None = None  # monotonic clock; None while the dependency is there
        self._failed_at = 0.0

    @property
    def is_away(self) -> bool:
        """Whether the dependency failed last."""
        return self._since is not None

    def failed(self, error: object) -> None:
        """Note a failure; the first of an outage is logged."""
        with self._lock:
            self._failed_at = time.monotonic()
            if self._since is not None:
                return
            self._since = self._failed_at
        log.warning("dependency_away", dependency=self._name, error=str(error).strip()[:300])

    def answered(self) -> None:
        """Note a success; the first after an outage is logged."""
        if self._since is None:
            return
        with self._lock:
            now = time.monotonic()
            if self._since is None or now - self._failed_at < QUIET_S:
                return
            away_s, self._since = now - self._since, None
        log.warning("dependency_back", dependency=self._name, away_s=round(away_s, 1))


POSTGRESQL = Dependency("postgresql")
VALKEY = Dependency("valkey")


def is_away(error: BaseException) -> bool:
    """Whether the error of a statement says that PostgreSQL is away, and nothing about the statement itself."""
    code = error.__cause__.sqlstate if isinstance(error, Error) and isinstance(error.__cause__, psycopg.Error) else None
    if code is None:  # found by the client, or by the pool, which got no connection
        return isinstance(error, InterfaceError | OperationalError)
    return code.startswith(_AWAY)
