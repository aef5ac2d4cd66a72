"""`end_pause`: lets somebody log in at once after too many failures."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from common import ip_addresses
from fleet.staff import brakes


class Command(BaseCommand):
    help = "Forget the failed log-ins of a user's name or of an address, so that the next log-in need not wait."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--user", help="Name of a user.")
        parser.add_argument("--address", help="IP address of a client; of an IPv6 address, its whole /64 network.")

    def handle(self, *args: Any, **options: Any) -> None:
        if not options["user"] and not options["address"]:
            raise CommandError("Give --user, --address or both.")
        if options["user"]:
            brakes.passed(options["user"])
        if options["address"]:
            brakes.forget(brakes.OF_ADDRESS.digest(_owner(options["address"])))
        self.stdout.write(
            "The failures are forgotten. A web process that counted by itself, while Valkey was away, forgets them later."
        )


def _owner(address: str) -> str:
    try:
        return ip_addresses.owner(address)
    except ValueError as error:
        raise CommandError(f"{address!r} is no IP address.") from error
