"""`rotate_master_key`: everything encrypted, under the first key of ORCH_MASTER_KEY. Safe to kill and to run again."""

import time
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from audit import actors, trail
from audit.actions import Action
from fleet import master_key
from fleet.master_key import Column, Found

PASSES = 20  # over a column whose tokens change under our hands
PAUSE_S = 0.5


class Command(BaseCommand):
    help = "Re-encrypt everything under the first key of ORCH_MASTER_KEY; --check exits 1 while something is not."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--check", action="store_true", help="change nothing, say how much is under an old key")

    def handle(self, *args: Any, check: bool, **options: Any) -> None:
        if check:
            self.check_columns()
        else:
            self.rotate()

    def check_columns(self) -> None:
        """Say of each column how much is under an old key. Raises CommandError when any is."""
        outdated = 0
        for column in master_key.columns():
            found = master_key.look(column)
            self.stdout.write(f"{column}: {found.outdated} of {found.tokens} under an old key{_unreadable(found)}")
            outdated += found.outdated + found.unreadable
        if outdated:
            raise CommandError(f"{outdated} are not under the first master key.")
        self.stdout.write("Everything is under the first master key; the others can go.")

    def rotate(self) -> None:
        """Re-encrypt, and write the row. Raises CommandError when something is left."""
        done = [self.rotate_column(column) for column in master_key.columns()]
        reencrypted, unreadable = sum(found.reencrypted for found in done), sum(found.unreadable for found in done)
        metadata = {"reencrypted": reencrypted, "unreadable": unreadable}
        trail.record(Action.MASTER_KEY_ROTATE, by=actors.SYSTEM, metadata=metadata)
        if unreadable:
            raise CommandError(f"{reencrypted} re-encrypted; {unreadable} are under no key of ORCH_MASTER_KEY.")
        self.stdout.write(f"{reencrypted} re-encrypted. Everything is under the first master key.")

    def rotate_column(self, column: Column) -> Found:
        """Passes over the column until one finds nothing to do; returns the last with all that was re-encrypted."""
        reencrypted = 0
        for _ in range(PASSES):
            found = master_key.rotate(column, lambda found: self.stdout.write(f"{column}: {_progress(found)}"))
            reencrypted += found.reencrypted
            if not found.outdated:
                found.reencrypted = reencrypted
                return found
            if found.reencrypted < found.outdated:
                time.sleep(PAUSE_S)  # somebody holds the rest
        raise CommandError(f"{column}: some could not be changed, because they were locked; run this again.")


def _progress(found: Found) -> str:
    return f"{found.tokens} looked at, {found.reencrypted} re-encrypted{_unreadable(found)}"


def _unreadable(found: Found) -> str:
    return f", {found.unreadable} that no key opens" if found.unreadable else ""
