from contextlib import suppress
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import Error

from common import wording
from common.settings import settings
from engines import backends, deployment
from engines.backends.base import BackendUnavailable
from engines.backends.shutdown import stop_all


class Command(BaseCommand):
    help = "Stop every engine of this host, for its shutdown; the registry is left unchanged, and the engines are resumed later."

    def handle(self, *args: Any, **options: Any) -> None:
        backend = backends.get()
        try:
            with suppress(Error):  # the engines are stopped also while the database is away
                deployment.check()
            left = stop_all(backend, grace_s=settings.ENV.stop_grace_s)
            if left:
                raise CommandError(f"{len(left)} engines could not be stopped; their logs say why")
            backend.stand_down()
        except deployment.NotOurs as refused:
            raise CommandError(str(refused)) from refused
        except BackendUnavailable as error:
            raise CommandError(f"the backend does not answer: {wording.line(str(error))}") from error
