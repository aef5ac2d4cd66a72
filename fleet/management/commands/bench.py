from argparse import ArgumentParser
from importlib import import_module
from typing import Any

from django.core.management.base import BaseCommand, CommandError


class Command(BaseCommand):
    """The door to the benchmarks. They are no part of an installation: the image does not have them."""

    help = "Measure a running deployment; alternatives are measured in turn in the same run."

    def add_arguments(self, parser: ArgumentParser) -> None:
        _benchmarks().add_arguments(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        _benchmarks().run(self.stdout, options)


def _benchmarks() -> Any:
    """`bench.command`, by its name. Raises CommandError where there are no benchmarks."""
    try:
        return import_module("bench.command")
    except ModuleNotFoundError as missing:
        raise CommandError(f"{missing}. Benchmarks run in a checkout, with the packages that `make run` installs.") from missing
