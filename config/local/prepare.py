"""Prepares the database before a local run starts its processes: migrations, a first staff user, engines that should run.

A single Django process replaces three `manage.py` commands, because every command takes a second to import.
"""

import os
import secrets
from pathlib import Path

import django
from django.core.management import call_command

from config import start_check
from config.local.embedded import home
from config.local.home import USERNAME


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
    django.setup()
    call_command("migrate", interactive=False, verbosity=1)
    start_check.run()  # before engines are resumed that may be another home's
    keep_admin(home() / "admin-password")
    call_command("resume_engines")


def keep_admin(file: Path) -> None:
    """Make the user `admin`, with the password in `file`, if missing; remove `file` once the password has been changed."""
    from django.contrib.auth import get_user_model

    from audit.actors import SYSTEM
    from fleet.staff import accounts

    admin = get_user_model().objects.filter(username=USERNAME).first()
    if admin is None:
        password = secrets.token_urlsafe(12)
        write_private(file, password)
        accounts.create_superuser(USERNAME, password, by=SYSTEM, cause="make run")
    elif file.exists() and not admin.check_password(file.read_text()):
        file.unlink()


def write_private(file: Path, text: str) -> None:
    file.unlink(missing_ok=True)
    with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as output:
        output.write(text)


if __name__ == "__main__":
    main()
