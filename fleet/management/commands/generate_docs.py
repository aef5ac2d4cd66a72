"""`generate_docs`: write the generated parts of docs/; with `--check` only name the outdated files (exit code 1)."""

from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from common.settings import settings
from fleet import documents


class Command(BaseCommand):
    help = "Write the actions, settings, states and the OpenAPI document into docs/; --check names outdated files and exits 1."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--check", action="store_true", help="change nothing, exit 1 when a file is out of date")
        parser.add_argument("--root", type=Path, default=settings.BASE_DIR, help="folder that holds docs/")

    def handle(self, *args: Any, check: bool, root: Path, **options: Any) -> None:
        if not check:
            for name in documents.write(root):
                self.stdout.write(f"wrote {name}")
        elif outdated := documents.stale(root):
            raise CommandError(f"out of date: {', '.join(outdated)}. Run manage.py generate_docs.")
