"""`migrate` as the owner's role: grants the application's role its rights, migrates, and adds the actions of the catalogue."""

from typing import Any

from django.core.management.commands import migrate
from django.db import connections

from audit import action_table
from common.settings import settings

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


class Command(migrate.Command):
    help = "Apply migrations as the owner of the database (ORCH_DATABASE_OWNER_URL)."

    def handle(self, *args: Any, **options: Any) -> None:
        options["database"] = "owner"
        connection = connections["owner"]
        with connection.cursor() as cursor:
            cursor.execute(GRANTS.format(app=connection.ops.quote_name(settings.DATABASES["default"]["USER"])))
        super().handle(*args, **options)
        if not (options["plan"] or options["check_unapplied"]):
            action_table.fill()
        if _application_may_all():
            self.stderr.write(ONE_ROLE)


def _application_may_all() -> bool:
    """Whether the application's role is the owner's role, or a member of the owner's role."""
    with connections["owner"].cursor() as cursor:
        cursor.execute("SELECT pg_has_role(%s, current_user, 'MEMBER')", [settings.DATABASES["default"]["USER"]])
        return bool(cursor.fetchone()[0])
