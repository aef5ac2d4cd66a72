"""`migrate`, as the owner: what it says of the roles."""

import io

import pytest
from django.core.management import call_command

from config.local import postgres


def migrate():
    said = io.StringIO()
    call_command("migrate", verbosity=0, stderr=said)
    return said.getvalue().splitlines()


@pytest.fixture
def member(superuser):
    """The application's role has all that the owner has."""
    superuser.execute(f"GRANT {postgres.OWNER} TO {postgres.APP}")
    yield
    superuser.execute(f"REVOKE {postgres.OWNER} FROM {postgres.APP}")


def test_migrate_says_nothing_of_two_roles(db):
    assert migrate() == []


def test_migrate_warns_in_one_line_when_the_application_has_the_owners_rights(db, member):
    (line,) = migrate()
    assert line.startswith("warning: ")
    assert "append-only triggers" in line
    assert "ORCH_DATABASE_OWNER_URL" in line
