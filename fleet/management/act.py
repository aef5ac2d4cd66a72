"""What `take_over` and `separate_copy` have in common: a plan, a question, and the act. `reconcile` asks the same way."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from engines.deployment import Found
from fleet import copies


class Act(BaseCommand):
    """A command that changes whose database this is, once somebody has said yes."""

    requires_migrations_checks = True

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--noinput", "--no-input", action="store_true", help="Do not ask: the answer is yes.")

    def handle(self, *args: Any, noinput: bool, **options: Any) -> None:
        try:
            found = self.plan()
        except copies.NothingToDo as nothing:
            self.stdout.write(str(nothing))
            return
        except copies.Refused as refused:
            raise CommandError(str(refused)) from refused
        self.stdout.write(f"Now {found.difference}.")
        if not noinput:
            ask(self.question(found))
        self.act(found)
        self.stdout.write(f"This database is the one of the deployment {found.here.name} now.")

    def plan(self) -> Found:
        """The stored and the present identity of the database. Raises NothingToDo, Refused."""
        raise NotImplementedError

    def question(self, found: Found) -> str:
        """What `yes` confirms."""
        raise NotImplementedError

    def act(self, found: Found) -> None:
        """Carry the command out."""
        raise NotImplementedError


def ask(question: str) -> None:
    """Raise CommandError unless the answer at the terminal is yes."""
    try:
        answer = input(f"{question} Type yes to go on: ")
    except (EOFError, KeyboardInterrupt) as error:
        raise CommandError("Nothing is changed. Without a terminal, add --noinput.") from error
    if answer.strip().lower() != "yes":
        raise CommandError("Nothing is changed.")
