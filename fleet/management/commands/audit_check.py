"""`audit_check`: replay the audit log and compare the result with the registry. Exit code 1 when they disagree."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError

from common import wording
from fleet import consistency


class Command(BaseCommand):
    help = "Replay the audit log; name every engine and product that disagrees, and every row that cannot be true (exit 1)."

    def handle(self, *args: Any, **options: Any) -> None:
        checked = consistency.check(lambda disagreement: self.stdout.write(wording.line(str(disagreement))))
        if checked.disagreeing or checked.others:
            others = f" and {checked.others} others" if checked.others else ""
            raise CommandError(
                f"{checked.disagreeing} of {checked.engines} engines{others} disagree, {checked.rows} audit rows checked."
            )
        self.stdout.write(f"Log and registry agree: {checked.engines} engines, {checked.rows} audit rows.")
