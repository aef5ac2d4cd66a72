"""Runs a function in a fork: the function's imports stay out of the calling process, which works on meanwhile."""

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
    """Run `work` in a fork during the block. The yielded function waits for the result, and raises a Refused of `work`."""
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
        signal.signal(number, signal.SIG_IGN)  # the waiting parent ends the fork
    die_with_parent(signal.SIGKILL)
    try:
        told.send(work())
    except Refused as refused:
        told.send(refused)


def _read(answer: "Connection[object, object]") -> Any:
    try:
        found = answer.recv()
    except EOFError as error:
        raise Refused("a step of the start ended without a result: see the error above") from error
    if isinstance(found, Refused):
        raise found
    return found
