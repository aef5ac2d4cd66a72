"""Whose engines the registry has: the name of the deployment, and the database, in a table of one row.

`migrate` stores the row. A copy of the database that is brought up elsewhere still has the row of the original, and so differs
from what it is itself:

- the name: another ORCH_DEPLOYMENT
- the cluster: another system identifier, as after `pg_restore` into another PostgreSQL. A promotion keeps the identifier
- the database: another object id, as after `pg_restore` into another database of the same cluster

SQL by hand: a process asks before its models are loaded.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import psycopg
from django.db import connection
from django.db.backends.base.base import BaseDatabaseWrapper

from common.settings import settings

Connection = BaseDatabaseWrapper | psycopg.Connection[Any]
PART = "database of another deployment"  # for `/health`

_HERE = """
    (SELECT system_identifier FROM pg_catalog.pg_control_system()),
    (SELECT oid::bigint FROM pg_catalog.pg_database WHERE datname = current_database())
"""
"""SQL: the cluster and the database that answer. A standby answers as well."""

IS_OURS = f"""
NOT EXISTS (SELECT FROM engines_deployment d
    WHERE (d.name, d.system, d.database) IS DISTINCT FROM (%(deployment)s::text, {_HERE}))
"""
"""SQL: whether the registry is this deployment's; true without a row. Its parameters are `params()`."""


class NotOurs(Exception):
    """The database belongs to another deployment. `str()` says what differs, and how to go on."""


class Identity(NamedTuple):
    """A deployment's name, the system identifier of its cluster, and the object id of its database."""

    name: str
    system: int
    database: int


class Found(NamedTuple):
    """The stored identity, None before `migrate` has stored one; and the present identity."""

    stored: Identity | None
    here: Identity

    @property
    def difference(self) -> str:
        """What differs, without an end of the sentence; empty if nothing differs."""
        return "" if self.stored is None or self.stored == self.here else _difference(self.stored, self.here)

    @property
    def fault(self) -> str:
        """What differs, and how to go on, in one line; empty if nothing differs."""
        return f"{self.difference}. {_ways(self.stored, self.here)}" if self.stored and self.difference else ""


def params() -> Mapping[str, str]:
    """The parameters of IS_OURS."""
    return {"deployment": settings.ENV.deployment}


def find(connection: Connection) -> Found:
    """The stored identity and the present one. Raises django.db.Error, also before the table exists."""
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {_HERE}")
        here = Identity(settings.ENV.deployment, *(cursor.fetchone() or ()))
        cursor.execute("SELECT name, system, database FROM engines_deployment")
        row = cursor.fetchone()
    return Found(Identity(*row) if row else None, here)


def check() -> None:
    """Raise NotOurs if the database belongs to another deployment, or django.db.Error."""
    if fault := find(connection).fault:
        raise NotOurs(fault)


def keep() -> None:
    """Store the present identity if none is stored.

    In a database from before this table, the last audit row says in which cluster the database was used. So a copy is found
    that is brought up and migrated with the same act.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            INSERT INTO engines_deployment (id, name, system, database)
            SELECT 1, %(deployment)s,
                -- Stretch 0 has the rows from before there were stretches: nobody knows where they were written.
                coalesce((SELECT s.system FROM audit_stretch s WHERE s.n > 0 ORDER BY s.n DESC LIMIT 1), here.system),
                here.database
            FROM (VALUES ({_HERE})) here(system, database)
            ON CONFLICT (id) DO NOTHING
            """,
            params(),
        )


def store() -> None:
    """Store the present identity, in place of the stored one."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO engines_deployment (id, name, system, database) VALUES (1, %(deployment)s, {_HERE})"
            " ON CONFLICT (id) DO UPDATE SET (name, system, database) = (excluded.name, excluded.system, excluded.database)",
            params(),
        )


def _difference(stored: Identity, here: Identity) -> str:
    differs = []
    if stored.name != here.name:
        differs.append(f"ORCH_DEPLOYMENT is {here.name}")
    if stored.system != here.system:
        differs.append(f"the cluster's system identifier is {here.system} (stored: {stored.system})")
    elif stored.database != here.database:
        differs.append(f"the database's object id is {here.database} (stored: {stored.database})")
    return f"this database belongs to the deployment {stored.name}, but {' and '.join(differs)}"


def _ways(stored: Identity, here: Identity) -> str:
    """How to go on."""
    is_named = stored.name == here.name
    back = "" if is_named else f"If only the name is wrong, set ORCH_DEPLOYMENT={stored.name}. "
    other = "set another ORCH_DEPLOYMENT and " if is_named else ""
    return (
        f"{back}If the original is gone for good, as after a restore, a move or a new name, run `python manage.py take_over`:"
        f" its engines stay. If this is a copy beside the original, {other}run `python manage.py separate_copy`:"
        " the copy begins without engines. See docs/operations.md, Copies of a database"
    )
