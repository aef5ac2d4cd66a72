"""`changepassword` with an audit row, in place of Django's."""

from argparse import ArgumentParser
from typing import Any

from django.contrib.auth.models import User
from django.core.management.base import BaseCommand, CommandError

from audit.actors import SYSTEM
from fleet.staff import accounts, terminal


class Command(BaseCommand):
    help = "Set the password of a user of the admin. The audit log keeps a row of it, without the password."
    requires_migrations_checks = True

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("username", help="Name of the user.")

    def handle(self, *args: Any, **options: Any) -> None:
        user = User.objects.filter(username=options["username"]).first()
        if user is None:
            raise CommandError(f"No user is called {options['username']!r}.")
        password = terminal.ask_password(user)
        terminal.check_password(password, user)
        with accounts.recorded(user, by=SYSTEM, cause="changepassword"):
            user.set_password(password)
            user.save(update_fields=["password"])
        self.stdout.write(f"{user.username} has a new password. The user's sessions have ended.")
