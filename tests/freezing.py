"""Servers of the run that stop answering for a while, as on a stalled machine."""

import os
import signal
from contextlib import contextmanager

from config.local import valkey
from tests import servers


@contextmanager
def frozen_valkey():
    pid = valkey.pid(servers.HOME)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
