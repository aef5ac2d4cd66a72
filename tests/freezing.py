"""Servers of the run that stop answering for a while, as on a stalled machine."""

import os
import signal
from contextlib import contextmanager

import psutil

from config.local import postgres, valkey
from tests import servers


@contextmanager
def frozen_valkey():
    pid = valkey.pid(servers.HOME)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def frozen_postgres():
    """The kernel goes on accepting connections, and what is sent."""
    server = psutil.Process(postgres.pid(servers.HOME))
    frozen = [server]
    server.suspend()  # first: it must start no more processes
    for child in server.children():
        child.suspend()
        frozen.append(child)
    try:
        yield
    finally:
        for process in frozen:
            process.resume()
