"""The key check: a token in the database that shows at once whether the master keys are the ones of the database's data.

`migrate` writes the token; `manage.py rotate_master_key` renews the token, after all others. SQL by hand: a process asks before
its models are loaded.
"""

from typing import Any

import psycopg
from django.db import connection
from django.db.backends.base.base import BaseDatabaseWrapper

from policy import crypto

Connection = BaseDatabaseWrapper | psycopg.Connection[Any]
CIPHERTEXT = "(SELECT ciphertext FROM policy_keycheck)"
"""SQL: the key check's token; NULL before `migrate` has written one."""

WORDS = "roundhouse"  # what the token says, whatever the key
PART = "master key not the one of the data"  # for `/health`
WRONG = (
    "ORCH_MASTER_KEY is not the key of this database: no key in it opens what the database has encrypted. Set the key that the"
    " database was used with, or ORCH_DATABASE_URL of the database that belongs to this key; if the key is lost, see"
    " docs/operations.md, Keys"
)


def fits(connection: Connection) -> bool:
    """Whether a master key opens the key check; also True as long as there is none. Raises django.db.Error."""
    return opens(read(connection))


def opens(token: str | None) -> bool:
    """Whether a master key opens the key check's token; also True for None."""
    return token is None or crypto.opens(token)


def read(connection: Connection) -> str | None:
    """The key check's token; None before `migrate` has written one. Raises django.db.Error."""
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {CIPHERTEXT}")
        (token,) = cursor.fetchone() or (None,)
    return token


def write() -> None:
    """Write the key check under the first master key, in place of an earlier one."""
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO policy_keycheck (id, ciphertext) VALUES (1, %s)"
            " ON CONFLICT (id) DO UPDATE SET ciphertext = excluded.ciphertext",
            [crypto.encrypt(WORDS)],
        )
