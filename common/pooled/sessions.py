"""The session behind a connection: whether it can write, and whether it is the connection's own.

A pooler such as PgBouncer in transaction mode lends a client some session of PostgreSQL for each transaction. What a session
remembers is then of no use between two transactions: prepared statements, `SET`, advisory locks, cursors.
"""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import psycopg
from django.core.exceptions import ImproperlyConfigured
from django.db.backends.utils import CursorWrapper

Connection = psycopg.Connection[Any]


class NoSession(ImproperlyConfigured):
    """A connection that has to have a session of its own leads through a pooler."""


def take_on(connection: Connection, since_doubt_s: float | None) -> None:
    """Make the connection fit for a pool. Raises ReadOnlySqlTransaction if its session cannot write.

    `since_doubt_s`: seconds since a session was seen that could not write, and none since that could; None if there is no doubt.
    """
    is_own, can_write = _look_at(connection)
    if not is_own:
        connection.prepare_threshold = None
        if since_doubt_s is not None or not can_write:
            _end_sessions(connection, since_doubt_s or 0.0)
    _refuse_unless(can_write)


def claim(connection: Connection, configuration: Mapping[str, str]) -> None:
    """Set parameters of PostgreSQL for the rest of the session. Raises NoSession, ReadOnlySqlTransaction."""
    is_own, can_write = _look_at(connection)
    if not is_own:
        connection.close()
        raise NoSession(
            "ORCH_DATABASE_OWNER_URL (or ORCH_DATABASE_URL, if the owner has no URL) leads through a pooler such as PgBouncer."
            " `migrate` and the keeper need a session of their own: name PostgreSQL itself in ORCH_DATABASE_OWNER_URL."
        )
    _refuse_unless(can_write)
    connection.execute(
        "SELECT set_config(name, value, false) FROM unnest(%s::text[], %s::text[]) AS wanted(name, value)",
        [list(configuration), list(configuration.values())],
    )


def check_writable(cursor: CursorWrapper) -> None:
    """Raise ReadOnlySqlTransaction if the session of the cursor cannot write."""
    cursor.execute("SHOW transaction_read_only")
    _refuse_unless(cursor.fetchone() == ("off",))


def _look_at(connection: Connection) -> tuple[bool, bool]:
    """Whether the session is the connection's own, and whether it can write.

    A pooler answers the log-in itself, and makes up the number of the process that it names there. A pooler also repeats the
    parameters that some session had at its start, so libpq's `target_session_attrs` can be deceived there: only a statement shows
    what the session can do. A server in recovery says `on`, too.
    """
    found = connection.execute("SELECT pg_backend_pid(), current_setting('transaction_read_only')").fetchone()
    assert found is not None
    process, read_only = found
    return process == connection.info.backend_pid, read_only == "off"


def _refuse_unless(can_write: bool) -> None:
    if not can_write:
        raise psycopg.errors.ReadOnlySqlTransaction("the database can be read, but not written")


def _end_sessions(connection: Connection, since_doubt_s: float) -> None:
    """End our idle sessions behind the pooler that are older than the doubt; also this one, if it cannot write.

    The pooler would lend them for up to an hour (PgBouncer's `server_lifetime`), and makes new sessions as it needs them. An idle
    session that reaches PostgreSQL from the same address without the pooler may end, too: its pool notices that at once.
    """
    with suppress(psycopg.errors.AdminShutdown):
        connection.execute(
            """
            SELECT pg_terminate_backend(pid) FROM pg_stat_activity
            WHERE usename = current_user AND datname = current_database()
              -- The address of the pooler, as PostgreSQL sees it; both are NULL for a socket.
              AND client_addr IS NOT DISTINCT FROM inet_client_addr()
              AND (state = 'idle' AND backend_start < clock_timestamp() - make_interval(secs => %s)
                OR pid = pg_backend_pid() AND current_setting('transaction_read_only') = 'on')
            ORDER BY pid = pg_backend_pid()  -- itself last
            """,
            [since_doubt_s],
        )
