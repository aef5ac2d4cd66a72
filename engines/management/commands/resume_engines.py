from typing import Any

from django.core.management.base import BaseCommand, CommandError

from common import wording
from engines import deployment, reconcile
from engines.backends.base import BackendUnavailable


class Command(BaseCommand):
    help = "Restart every engine that should run and does not, after its host was away or the database was restored."

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            deployment.check()
            self.stdout.write(f"{reconcile.resume()} engines resumed")
        except deployment.NotOurs as refused:
            raise CommandError(str(refused)) from refused
        except BackendUnavailable as error:
            why = wording.line(str(error))
            self.stdout.write(f"no engine resumed yet; the process `health` resumes engines once the backend answers: {why}")
