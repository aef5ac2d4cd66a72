"""Servers of the run that stop answering for a while, as on a stalled machine."""

import os
import signal
from contextlib import contextmanager

import psutil
from django.db import connection

from config.local import postgres, valkey
from tests import servers, waiting

AT_REST_S = 0.2  # a transaction without a statement for so long stands still


@contextmanager
def frozen_valkey():
    pid = valkey.pid(servers.HOME)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def freeze_at_rest(stack, name):
    """Freeze the process between two transactions: one in the middle would keep its locks. Returns the group to `thaw`."""

    def freeze():
        group, since = stack.freeze(name), waiting.now()
        waiting.until(lambda: waiting.passed(since, 2 * AT_REST_S), 5)
        if not _stand_still():
            return group
        stack.thaw(group)
        return None

    return waiting.until(freeze, 20, f"{name} is between two transactions")


def _stand_still():
    """How many transactions wait for their process."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in transaction%%'"
            " AND state_change < clock_timestamp() - make_interval(secs => %s)",
            [AT_REST_S],
        )
        return cursor.fetchone()[0]


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
