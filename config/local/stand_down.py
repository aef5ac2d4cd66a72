"""Ends a local run while its servers are up: stops the engines, and forgets the backend of a home without engines."""

import os

import django
from django.core.management import call_command

from config.local import backend_choice
from config.local.embedded import home


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
    django.setup()
    from engines.models import Engine

    if not Engine.objects.living().exists():
        backend_choice.forget(home())
    call_command("stop_engines")


if __name__ == "__main__":
    main()
