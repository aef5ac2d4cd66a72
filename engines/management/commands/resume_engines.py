from typing import Any

from django.core.management.base import BaseCommand

from engines import reconcile


class Command(BaseCommand):
    help = "Restart every engine that should run and does not, because its host was away."

    def handle(self, *args: Any, **options: Any) -> None:
        self.stdout.write(f"{reconcile.resume()} engines resumed")
