"""Hands for a test in one process: threads that carry out whatever is open, as the workers of a deployment do."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from django.db import connection

from engines import health, worker
from engines.models import OPEN, Operation


@contextmanager
def at_work(threads=4):
    """Carry out every operation that opens within the block."""
    over = threading.Event()
    hands = [threading.Thread(target=_work, args=(over,)) for _ in range(threads)]
    for hand in hands:
        hand.start()
    try:
        yield
    finally:
        over.set()
        for hand in hands:
            hand.join()


def _work(over):
    try:
        while not over.wait(0.02):
            for operation_id in list(Operation.objects.filter(state__in=OPEN, lease_until=None).values_list("pk", flat=True)):
                worker.run(operation_id)
            connection.close()
    finally:
        connection.close()


def in_parallel(call: Callable, arguments, threads=None):
    """`call` of each argument at once, each on its own thread and connection; the results in order, errors among them."""
    arguments = list(arguments)
    barrier = threading.Barrier(threads or len(arguments))

    def one(argument):
        if threads is None:
            barrier.wait()
        try:
            return call(argument)
        except Exception as error:  # noqa: BLE001 (a result like any other)
            return error
        finally:
            connection.close()

    with ThreadPoolExecutor(threads or len(arguments)) as pool:
        return list(pool.map(one, arguments))


def probe_once(engine):
    """One probe of the engine, as while it boots."""
    with health.Prober(engine, engine.key_hash) as prober:
        return prober.probe()
