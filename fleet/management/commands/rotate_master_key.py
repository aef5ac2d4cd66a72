"""`rotate_master_key`: re-encrypt everything under the first key of ORCH_MASTER_KEY. Safe to kill and to run again."""

import time
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from audit import actors, trail
from audit.actions import Action
from fleet import master_key
from fleet.master_key import Column, Found
from policy import key_check

PASSES = 20  # at most, over a column with tokens locked or changed meanwhile
PAUSE_S = 0.5


class Command(BaseCommand):
    help = "Re-encrypt everything under the first key of ORCH_MASTER_KEY; --check exits 1 while a token is not."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--check", action="store_true", help="change nothing, count the tokens under an old key")
        lost = "go on with the present keys, although they open not everything: an earlier key is lost"
        parser.add_argument("--accept-loss", action="store_true", help=lost)

    def handle(self, *args: Any, check: bool, accept_loss: bool, **options: Any) -> None:
        if check:
            self.check_columns()
            return
        try:
            self.rotate()
        finally:
            if accept_loss:
                key_check.write()

    def check_columns(self) -> None:
        """Print per column the number of tokens under an old key. Raises CommandError unless the number is 0 everywhere."""
        outdated = 0
        for column in master_key.columns():
            found = master_key.inspect(column)
            self.stdout.write(f"{column}: {found.outdated} of {found.tokens} under an old key{_unreadable(found)}")
            outdated += found.outdated + found.unreadable
        if outdated:
            raise CommandError(f"{outdated} tokens are not under the first master key.")
        self.stdout.write("Everything is under the first master key; the other keys can be removed.")

    def rotate(self) -> None:
        """Re-encrypt all columns, and write the audit row. Raises CommandError when tokens stay locked or are unreadable."""
        done = [self.rotate_column(column) for column in master_key.columns()]
        reencrypted, unreadable = sum(found.reencrypted for found in done), sum(found.unreadable for found in done)
        metadata = {"reencrypted": reencrypted, "unreadable": unreadable}
        trail.record(Action.MASTER_KEY_ROTATE, by=actors.SYSTEM, metadata=metadata)
        if unreadable:
            raise CommandError(f"{reencrypted} re-encrypted; {unreadable} are under no key of ORCH_MASTER_KEY.")
        self.stdout.write(f"{reencrypted} re-encrypted. Everything is under the first master key.")

    def rotate_column(self, column: Column) -> Found:
        """Repeat passes until no token is outdated. Returns the last pass, with the re-encrypted tokens of all passes."""
        reencrypted = 0
        for _ in range(PASSES):
            found = master_key.rotate(column, lambda found: self.stdout.write(f"{column}: {_progress(found)}"))
            reencrypted += found.reencrypted
            if not found.outdated:
                found.reencrypted = reencrypted
                return found
            if found.reencrypted < found.outdated:
                time.sleep(PAUSE_S)  # concurrent transactions hold or changed the rest
        raise CommandError(f"{column}: some tokens could not be changed, because their rows were locked; run the command again.")


def _progress(found: Found) -> str:
    return f"{found.tokens} read, {found.reencrypted} re-encrypted{_unreadable(found)}"


def _unreadable(found: Found) -> str:
    return f", {found.unreadable} under no key of ORCH_MASTER_KEY" if found.unreadable else ""
