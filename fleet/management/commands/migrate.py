"""`migrate`, as the owner's role, with what the application's role may do stated first."""

from typing import Any

from django.conf import settings
from django.core.management.commands import migrate
from django.db import connections

GRANTS = """
GRANT USAGE ON SCHEMA public TO {app};
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO {app};
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT USAGE, SELECT ON SEQUENCES TO {app};
"""


class Command(migrate.Command):
    help = "Apply migrations as the owner of the database (ORCH_DATABASE_OWNER_URL)."

    def handle(self, *args: Any, **options: Any) -> None:
        options["database"] = "owner"
        connection = connections["owner"]
        with connection.cursor() as cursor:
            cursor.execute(GRANTS.format(app=connection.ops.quote_name(settings.DATABASES["default"]["USER"])))
        super().handle(*args, **options)
