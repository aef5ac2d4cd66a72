"""Errors of PostgreSQL after which a connection is of no use.

For psycopg, and so for Django, some of them are errors of the program. For their callers all of them mean the same as a lost
connection: nothing was done, and on another connection the same statement would work.
"""

from types import TracebackType
from typing import Protocol

import psycopg
from django.db import OperationalError
from django.db.utils import DatabaseErrorWrapper
from psycopg_pool import PoolTimeout

from common.pooled.silence import Silent

USELESS = {  # by SQLSTATE (https://www.postgresql.org/docs/current/errcodes-appendix.html)
    "25006": "the session may only read: the server was demoted, or somebody has made the database read-only",
    "25P03": "the server has ended the session: its transaction was idle for too long",
    "25P04": "the server has ended the session: its transaction took too long",
    "26000": "the session lost its prepared statements, or a pooler has put another session in its place",
    "42P05": "a pooler has put a session in its place with statements of somebody else",
    "57P01": "the server was told to end the session",
    "57P02": "the crash of another session has ended all sessions of the server",
    "57P03": "the server starts, stops or recovers",
    "57P05": "the server has ended the session: it was idle for too long",
}
_CONNECTION_EXCEPTIONS = "08"  # class of SQLSTATEs
_STALE_PLAN = "RevalidateCachedQuery"  # the function in PostgreSQL that finds the columns of a prepared statement changed


class NotWritable(PoolTimeout):
    """No connection came in time, because the database can only be read."""


class Wrapper(Protocol):
    """The parts of Django's connection that `ErrorWrapper` uses."""

    errors_occurred: bool

    def give_up(self, error: psycopg.Error) -> None: ...


class ErrorWrapper(DatabaseErrorWrapper):
    """Django's translation of errors. An error after which the connection is of no use gives up the connection.

    Such an error becomes an OperationalError, whatever psycopg calls it, because Django calls a lost connection so.
    """

    wrapper: Wrapper

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if isinstance(error, psycopg.Error) and is_useless_after(error):
            self.wrapper.errors_occurred = True
            self.wrapper.give_up(error)
            raise OperationalError(*error.args).with_traceback(traceback) from error
        super().__exit__(kind, error, traceback)


def is_useless_after(error: psycopg.Error) -> bool:
    """Whether the error of a statement says that its connection is of no use. (A lost connection is closed already.)"""
    if error.sqlstate is None:
        return isinstance(error, Silent)
    is_known = error.sqlstate in USELESS or error.sqlstate.startswith(_CONNECTION_EXCEPTIONS)
    return is_known or error.diag.source_function == _STALE_PLAN


def is_read_only(error: BaseException) -> bool:
    """Whether django.db's error was raised because the database can be read and not written."""
    return isinstance(error.__cause__, (NotWritable, psycopg.errors.ReadOnlySqlTransaction))
