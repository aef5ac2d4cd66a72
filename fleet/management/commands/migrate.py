"""`migrate` as the owner's role: grants rights to the application's role, migrates, adds actions and jobs, sets time limits.

At the end, as the application's role, it stores whose database this is, brings the roles of staff to what the code says, and
writes the key check.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from django.core.management.base import CommandError
from django.core.management.commands import migrate
from django.db import Error, connections, transaction
from django.db.backends.utils import CursorWrapper

from audit import action_table, partitions
from common.pooled.base import unpooled
from common.pooled.sessions import NoSession
from common.settings import settings
from common.statements import LIMITS
from engines import deployment
from fleet import jobs, master_key, status
from fleet.staff import roles
from policy import key_check

GRANTS = """
GRANT USAGE ON SCHEMA public TO {app};
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO {app};
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT USAGE, SELECT ON SEQUENCES TO {app};
"""


ONE_ROLE = (
    "warning: the application and the owner of the tables are one database role, so the database does not keep the application"
    " from removing the audit log's append-only triggers; to protect the log, begin on a new database with a separate role in"
    " ORCH_DATABASE_OWNER_URL (docs/operations.md, Two database roles)"
)

LARGE_OBJECTS = (
    "warning: the application's role may make large objects, which are in no table and no retention; as a superuser, run"
    " deploy/postgres/no-large-objects.sql in this database (docs/operations.md, Two database roles)"
)


class Command(migrate.Command):
    help = "Apply migrations as the owner of the database (ORCH_DATABASE_OWNER_URL)."

    def handle(self, *args: Any, **options: Any) -> None:
        options["database"] = "owner"
        try:
            partitions.check_session()
        except NoSession as error:
            raise CommandError(str(error)) from error
        _check_master_key()
        with _turn("owner") as cursor:
            cursor.execute(GRANTS.format(app=connections["owner"].ops.quote_name(settings.DATABASES["default"]["USER"])))
        super().handle(*args, **options)
        if not (options["plan"] or options["check_unapplied"]):
            action_table.fill()
            if fault := _keep_deployment():
                self.stderr.write(f"warning: {fault}")
            _add_jobs()
            _bring_roles()
            _keep_key_check()
        _limit_application()
        if _application_may_all():
            self.stderr.write(ONE_ROLE)
        if _application_makes_large_objects():
            self.stderr.write(LARGE_OBJECTS)


@contextmanager
def _turn(database: str) -> Iterator[CursorWrapper]:
    """A transaction, and no other of the block's kind beside it: of two `migrate` at once, the later waits.

    PostgreSQL would refuse the later of two that change one role at once, and both would make the same groups.
    """
    with transaction.atomic(using=database), connections[database].cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(hashtext('migrate'))")
        yield cursor


def _check_master_key() -> None:
    """Raise CommandError if the database has a key check, and no master key opens it: nothing is migrated then."""
    with suppress(Error), unpooled() as connection:  # no such table yet; a database that is away is told by `migrate` itself
        if not key_check.fits(connection):
            raise CommandError(key_check.WRONG)


def _keep_key_check() -> None:
    """Write the key check of a new database, and of one from before there was a key check. Raises CommandError."""
    if status.is_migrated() and settings.ENV.master_keys:
        with _turn("default"):
            if not master_key.ensure_check():
                raise CommandError(key_check.WRONG)


def _keep_deployment() -> str:
    """Store whose database a new one is, or one from before this was stored. Returns how a stored deployment differs.

    Called before an audit row is written here. A database of another deployment is migrated all the same: whoever takes it over
    needs the tables of this code.
    """
    if not status.is_migrated():
        return ""
    with _turn("default"):
        deployment.keep()
    return deployment.find(connections["default"]).fault


def _add_jobs() -> None:
    """Give new periodic jobs their rows, unless `migrate` was asked for a state before their table."""
    if status.is_migrated():
        jobs.add()


def _bring_roles() -> None:
    """Bring the roles of staff to the code's table, unless `migrate` was asked for an earlier or an unfinished state.

    As the application's role, because the audit rows are written as always.
    """
    if status.is_migrated():
        with _turn("default"):
            roles.bring()


def _limit_application() -> None:
    """Give the application's role its time limits, also for sessions that know nothing of our settings.

    As the application's role: every role may set its own defaults, and only a superuser those of another.
    """
    with _turn("default") as cursor:
        cursor.execute("SELECT current_database()")  # a pooler may have another name for it
        database = connections["default"].ops.quote_name(cursor.fetchone()[0])
        for name, limit in LIMITS.items():
            cursor.execute(f"ALTER ROLE CURRENT_USER IN DATABASE {database} SET {name} = '{limit}'")
    connections["default"].close()


def _application_may_all() -> bool:
    """Whether the application's role is the owner's role, or a member of the owner's role."""
    with connections["owner"].cursor() as cursor:
        cursor.execute("SELECT pg_has_role(%s, current_user, 'MEMBER')", [settings.DATABASES["default"]["USER"]])
        return bool(cursor.fetchone()[0])


def _application_makes_large_objects() -> bool:
    """Whether the application's role may call one of the functions that `no-large-objects.sql` takes away."""
    with connections["owner"].cursor() as cursor:
        cursor.execute(
            "SELECT bool_or(has_function_privilege(%s, oid, 'EXECUTE')) FROM pg_proc"
            " WHERE pronamespace = 'pg_catalog'::regnamespace AND proname ~ '^(lo_.*|loread|lowrite)$'",
            [settings.DATABASES["default"]["USER"]],
        )
        return bool(cursor.fetchone()[0])
