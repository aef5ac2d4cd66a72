"""`createsuperuser` with an audit row, in place of Django's."""

import os
from argparse import ArgumentParser
from typing import Any

from django.contrib.auth.models import User
from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError

from audit.actors import SYSTEM
from fleet.staff import accounts, terminal

PASSWORD = "DJANGO_SUPERUSER_PASSWORD"  # noqa: S105 (the name of a variable)


class Command(BaseCommand):
    help = "Make a superuser, who may do everything in the admin. The audit log keeps a row of it."
    requires_migrations_checks = True

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--username", help="Name of the user; it can never be changed. Asked for if missing.")
        parser.add_argument("--email", default="", help="Address of e-mail of the user.")
        parser.add_argument(
            "--noinput", action="store_true", help=f"Ask nothing: needs --username, and the password in {PASSWORD}."
        )

    def handle(self, *args: Any, **options: Any) -> None:
        username = options["username"] or ("" if options["noinput"] else input("Username: ").strip())
        username = User.normalize_username(username)
        user = User(username=username, email=options["email"])
        try:
            user.clean_fields(exclude=["password"])
            user.validate_unique()
            accounts.check_name(username)
        except ValidationError as refused:
            raise CommandError(terminal.sentences(refused)) from refused
        password = os.environ.get(PASSWORD, "") if options["noinput"] else terminal.ask_password(user)
        if not password:
            raise CommandError(f"No password: set {PASSWORD}, or leave --noinput out.")
        terminal.check_password(password, user)
        accounts.create_superuser(username, password, email=options["email"], by=SYSTEM, cause="createsuperuser")
        self.stdout.write(f"{username} is a superuser.")
