"""A function that runs in a fork of this process: what it imports is not kept here, and we can do something else meanwhile."""

import multiprocessing
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from config.local.home import Refused
from config.processes import die_with_parent

T = TypeVar("T")


@contextmanager
def aside(work: Callable[[], T]) -> Iterator[Callable[[], T]]:
    """Inside, `work` is done elsewhere. Call what is yielded to wait for its value; it raises Refused where `work` has."""
    fork = multiprocessing.get_context("fork")
    answer, told = fork.Pipe(duplex=False)
    process = fork.Process(target=_work, args=(work, told))
    process.start()
    told.close()
    try:
        yield lambda: _read(answer)
    finally:
        process.kill()
        process.join()
        answer.close()


def _work(work: Callable[[], object], told: "Connection[object, object]") -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # whoever waits for us ends us
    die_with_parent(signal.SIGKILL)
    try:
        told.send(work())
    except Refused as refused:
        told.send(refused)


def _read(answer: "Connection[object, object]") -> Any:
    try:
        found = answer.recv()
    except EOFError as error:
        raise Refused("a step of the start has ended without a result: see above") from error
    if isinstance(found, Refused):
        raise found
    return found
