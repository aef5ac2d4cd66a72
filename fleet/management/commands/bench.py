from argparse import ArgumentParser
from importlib import import_module
from typing import Any

from django.core.management.base import BaseCommand, CommandError


class Command(BaseCommand):
    """Runs the benchmarks of the folder `bench/` in a checkout; the image of an installation lacks `bench/`."""

    help = "Run a benchmark; alternatives are measured alternately in a single run."

    def add_arguments(self, parser: ArgumentParser) -> None:
        _benchmarks().add_arguments(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        _benchmarks().run(self.stdout, options)


def _benchmarks() -> Any:
    """The module `bench.command`. Raises CommandError when the benchmarks are not installed."""
    try:
        return import_module("bench.command")
    except ModuleNotFoundError as missing:
        raise CommandError(f"{missing}. Benchmarks run in a checkout, with the packages that `make run` installs.") from missing
