"""What a process asks before its work: whether the database is the one of its master key, and of its deployment.

A process with another key would answer 500 to every admit, and store new keys that nobody else can read. A process on a copy of
another deployment's database would act on engines that are not its own.
"""

import os
import sys

from django.db import Error

from common.pooled.base import unpooled
from engines import deployment
from policy import key_check

REFUSED = os.EX_CONFIG  # 78: a restart does not help; systemd takes it in RestartPreventExitStatus


def run() -> None:
    """End the process with one line on stderr if the database is not its own.

    A database that is away refuses nothing: `/health` says so, and its return is waited for.
    """
    try:
        fault = _find_fault()
    except Error:  # away, or not migrated yet
        return
    if fault:
        print(f"roundhouse: {fault}", file=sys.stderr, flush=True)
        sys.exit(REFUSED)


def _find_fault() -> str:
    """The line that refuses the start; empty if the database is the process's own. Raises django.db.Error."""
    with unpooled() as connection:
        return deployment.find(connection).fault if key_check.fits(connection) else key_check.WRONG
