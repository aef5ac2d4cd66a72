#!/usr/bin/env python
"""Django's command line. Locally, the servers of `ORCH_HOME` are up while a command runs."""

import os
import signal
import sys
from contextlib import nullcontext


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
    try:
        from config.local import embedded
    except ImportError as error:
        sys.exit(f"manage.py: {error}. Run `make run` once, then use .venv/bin/python manage.py")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    needs_servers = sys.argv[1:2] and sys.argv[1] not in ("help", "version", "-h", "--help", "--version")
    if sys.argv[1:2] == ["bench"] and "footprint" in sys.argv:
        # `bench footprint` has a home of its own; further servers would share memory pages with the measured servers.
        needs_servers = False
    try:
        with embedded.running(embedded.home()) if needs_servers else nullcontext():
            run_command()
    except embedded.Refused as refused:
        sys.exit(f"manage.py: {refused}")


def run_command() -> None:
    """Carry out the command. Without a table or column that `migrate` makes, end with a sentence instead of a traceback."""
    from django.core.management import execute_from_command_line
    from django.db import ProgrammingError, connections

    try:
        execute_from_command_line(sys.argv)
    except ProgrammingError:
        from fleet import status

        connections.close_all()  # the error may have left a transaction behind
        if status.is_migrated():
            raise
        sys.exit("manage.py: migrations are missing: run `python -m config.processes exec migrate` first.")


if __name__ == "__main__":
    main()
