"""What a process asks before its work: whether its master key is the one of the database's data.

A process with another key would answer 500 to every admit, and store new keys that nobody else can read.
"""

import os
import sys

from django.db import Error

from common.pooled.base import unpooled
from policy import key_check

REFUSED = os.EX_CONFIG  # 78: a restart does not help; systemd takes it in RestartPreventExitStatus


def run() -> None:
    """End the process with one line on stderr if no master key is the one of the data.

    A database that is away refuses nothing: `/health` says so, and its return is waited for.
    """
    try:
        with unpooled() as connection:
            is_right = key_check.fits(connection)
    except Error:  # away, or not migrated yet
        return
    if not is_right:
        print(f"roundhouse: {key_check.WRONG}", file=sys.stderr, flush=True)
        sys.exit(REFUSED)
