"""Processes of tests take turns, where two would be in each other's way on this machine."""

import fcntl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def alone(what: str) -> Iterator[None]:
    """One process at a time has `what`; the others wait. The turn ends with the block, and also with the process."""
    with Path(tempfile.gettempdir(), f"roundhouse-tests-{what}").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
