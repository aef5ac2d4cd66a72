"""`audit_check`: replay the audit log and compare the result with the registry. Exit code 1 when an engine disagrees."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError

from common import wording
from fleet import consistency


class Command(BaseCommand):
    help = "Replay the audit log by engine_seq and name every engine that disagrees with the registry (exit 1)."

    def handle(self, *args: Any, **options: Any) -> None:
        checked = consistency.check(lambda disagreement: self.stdout.write(wording.line(str(disagreement))))
        if checked.disagreeing:
            raise CommandError(f"{checked.disagreeing} of {checked.engines} engines disagree, {checked.rows} audit rows checked.")
        self.stdout.write(f"Log and registry agree: {checked.engines} engines, {checked.rows} audit rows.")
