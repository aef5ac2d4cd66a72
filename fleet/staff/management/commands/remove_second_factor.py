"""`remove_second_factor`: remove a user's second factor from the command line, where no superuser can log in any more."""

from typing import Any

from django.contrib.auth.models import User
from django.core.management.base import BaseCommand, CommandError, CommandParser

from audit import actors
from fleet.staff import second_factor
from fleet.staff.second_factor import NotSetUp

CAUSE = "remove_second_factor"


class Command(BaseCommand):
    help = "Remove the second factor of a user who has lost it and the recovery codes; the audit log has a row of it."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("username")

    def handle(self, *args: Any, username: str, **options: Any) -> None:
        user = User.objects.filter(username=username).first()
        if user is None:
            raise CommandError(f"No user has the name {username}.")
        try:
            second_factor.remove(user, by=actors.SYSTEM, cause=CAUSE)
        except NotSetUp as error:
            raise CommandError(str(error)) from error
        self.stdout.write(f"{username} has no second factor any more, and logs in with the password alone.")
