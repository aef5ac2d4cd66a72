"""`audit_check`: replay the audit log and compare the result with the registry. Exit code 1 when they disagree."""

from argparse import ArgumentParser
from datetime import datetime
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError, connection

from audit import trail
from audit.actions import Action
from audit.actors import SYSTEM
from common import wording
from fleet import consistency
from fleet.consistency import Checked, Checkpoint

LIMIT = 100  # disagreeing subjects


class Command(BaseCommand):
    help = (
        "Replay the audit log; name every engine and product that disagrees, every row that cannot be true, and every day with"
        " rows that were changed or removed (exit 1). A check that finds nothing leaves an audit row, from which --since goes on."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--limit", type=int, default=LIMIT, help=f"stop after so many disagreements; 0: name all (default: {LIMIT})"
        )
        parser.add_argument(
            "--since",
            metavar="last|ROW",
            help="check only what was written since the last check that found nothing, or since the check with the audit row ROW",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        began, since = _now(), _find(options["since"])
        verbosity, limit = options["verbosity"], options["limit"] or None
        checked = consistency.check(
            lambda disagreement: self.stdout.write(wording.line(str(disagreement))),
            limit=limit,
            since=since,
            progress=lambda text: self.stderr.write(f"Comparing {text} ...") if verbosity else None,
        )
        if not checked.agrees:
            raise CommandError(_disagreement(checked))
        unproven = f" {checked.unproven} rows are in no sum yet." if checked.unproven else ""
        newer = f" since row {since.upto}" if since else ""
        self.stdout.write(f"Log and registry agree{newer}: {checked.engines} engines, {checked.rows} audit rows.{unproven}")
        self._remember(checked, since, began)

    def _remember(self, checked: Checked, since: Checkpoint | None, began: datetime) -> None:
        """Leave the audit row. The check is worth its answer also on a database that cannot be written, such as a standby."""
        try:
            _record(checked, since, began)
        except DatabaseError as error:
            self.stderr.write(f"This check leaves no row, and --since cannot go on from it: {type(error).__name__}.")


def _find(since: str | None) -> Checkpoint | None:
    """The checkpoint that `--since` names. Raises CommandError."""
    if since is None:
        return None
    if since != "last" and not (since.isascii() and since.isdigit()):
        raise CommandError("--since takes `last`, or the number of an audit row of the action audit_check.")
    try:
        return consistency.find_checkpoint(None if since == "last" else int(since))
    except consistency.NoCheckpoint as error:
        raise CommandError(str(error)) from error


def _now() -> datetime:
    """The time by the database's clock."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT clock_timestamp()")
        return cursor.fetchone()[0]  # type: ignore[no-any-return]


def _disagreement(checked: Checked) -> str:
    others = f" and {checked.others} others" if checked.others else ""
    if not checked.is_whole:
        return (
            f"Stopped after {checked.disagreeing} engines{others} that disagree; {checked.rows} audit rows checked so far."
            " `--limit 0` names all."
        )
    return f"{checked.disagreeing} of {checked.engines} engines{others} disagree, {checked.rows} audit rows checked."


def _record(checked: Checked, since: Checkpoint | None, began: datetime) -> None:
    """Write the audit row of a check that found nothing."""
    assert checked.checkpoint is not None
    metadata = {
        "engines": checked.engines,
        "rows": checked.rows,
        "unproven": checked.unproven,
        **vars(checked.checkpoint),
        **({"since": since.upto} if since else {}),
    }
    trail.record(Action.AUDIT_CHECK, by=SYSTEM, metadata=metadata, started=began)
