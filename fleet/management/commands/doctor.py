from typing import Any

from django.core.management.base import BaseCommand, CommandError

from common import wording
from fleet import doctor


class Command(BaseCommand):
    help = "Say what is wrong with this installation, a sentence for each fault (exit 1). Changes nothing."
    requires_system_checks = ()  # `doctor` runs the checks, and goes on after an error

    def handle(self, *args: Any, **options: Any) -> None:
        sentences = list(doctor.find())
        for sentence in sentences:
            self.stdout.write(wording.line(sentence))
        if count := len(sentences):
            raise CommandError(f"{count} {'faults' if count > 1 else 'fault'} found.")
        self.stdout.write("Nothing is wrong.")
