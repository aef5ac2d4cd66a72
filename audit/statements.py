"""Statements written by hand that are sent over and over: prepared once per connection, with their parameters left to the server.

Django's own cursors put parameters into the text, so that PostgreSQL reads and plans it anew each time. For a statement as long
as a move with its row, or as short as a read of the hot path, that takes longer than carrying it out.
"""

from contextlib import AbstractContextManager
from typing import cast

import psycopg
from django.db import connections
from django.db.backends.utils import CursorWrapper


def cursor(using: str = "default") -> AbstractContextManager[CursorWrapper]:
    """A cursor on Django's connection, in its transaction, that prepares what it executes; Django's own while queries are logged.

    Without text around them the server has to be told types that it cannot infer: `%(x)s::text`.
    """
    connection = connections[using]
    if connection.queries_logged:
        return connection.cursor()
    connection.ensure_connection()
    return connection.make_cursor(cast(CursorWrapper, psycopg.Cursor(connection.connection)))
