"""What a fork of the server of `tests.stack` does. It imports this module, and with it nothing of the test run."""

import os
import sys
from pathlib import Path

from config.local import forks
from config.processes import BY_NAME

ROOT = Path(__file__).resolve().parent.parent


def become(name: str, environment: dict[str, str], log: Path, *, execute: bool) -> None:
    """Turn this fresh fork into the process of that name, in a session of its own; `execute` starts an interpreter for that."""
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(ROOT)
    if execute:
        forks.reset_signals()
        os.execve(sys.executable, [sys.executable, "-m", "config.processes", "exec", name], environment)
    forks.turn_into(BY_NAME[name], environment)
