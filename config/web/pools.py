"""Separate threads for the hot path, for destroys and for all else, chosen by the first line of a request."""

import re
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any

from common import busy_thread, compute_permit

_HOT = re.compile(rb"POST /engines/[^/? ]+/admit[? ]|(?:GET|HEAD) /health[? ]")
_DESTROY = re.compile(rb"DELETE /engines/[^/? ]+[? ]")
SMALL = 16 * 1024  # bytes of an admit with its headers; a longer admit is read by the other threads
Task = tuple["Future[Any]", Callable[..., Any], Any]  # for the answer; the function that answers, and the connection


class Pool(Executor):
    """`count` threads that are busy, and beside them the threads that stand aside (`common.busy_thread`) and only wait."""

    def __init__(self, count: int, name: str) -> None:
        self._free = count
        self._queue: deque[Task] = deque()
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(count + busy_thread.MOST_ASIDE, name)

    def submit(self, handle: Callable[..., Any], conn: Any, /) -> "Future[Any]":  # type: ignore[override]  # of a connection
        task: Task = (Future(), handle, conn)
        with self._lock:
            if not self._free:
                self._queue.append(task)
                return task[0]
            self._free -= 1
        self._threads.submit(self._run, task)
        return task[0]

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As of every executor: without `cancel_futures`, all that was submitted is still done."""
        with self._lock:
            waiting = list(self._queue)
            self._queue.clear()
        for task in waiting:
            if cancel_futures:
                task[0].cancel()
            else:
                self._threads.submit(self._run, task)
        self._threads.shutdown(wait, cancel_futures=cancel_futures)

    def _run(self, task: Task) -> None:
        future, handle, conn = task
        with busy_thread.counted(self._start_another):
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(handle(conn))
            except BaseException as error:  # noqa: BLE001 (the future carries every error, as those of an executor do)
                future.set_exception(error)

    def _start_another(self) -> None:
        with self._lock:
            if not self._queue:
                self._free += 1
                return
            task = self._queue.popleft()
        self._threads.submit(self._run, task)


class Pools(Executor):
    """`threads` threads for admits and `/health`, as many for most other requests, and threads for destroys."""

    def __init__(self, threads: int) -> None:
        self._hot, self._other = Pool(threads, "hot"), Pool(threads, "other")
        self._destroys = Pool(busy_thread.DESTROYS, "destroys")

    def submit(self, handle: Callable[..., Any], conn: Any, /) -> "Future[Any]":  # type: ignore[override]  # of a connection
        if is_hot(conn.request):
            return self._hot.submit(handle, conn)
        pool = self._destroys if is_destroy(conn.request) else self._other
        return pool.submit(_in_turn(handle), conn)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        for pool in (self._hot, self._destroys, self._other):
            pool.shutdown(wait, cancel_futures=cancel_futures)


def is_hot(request: bytes) -> bool:
    """Whether the request is an admit or a question for our health."""
    return _HOT.match(request) is not None and len(request) <= SMALL


def is_destroy(request: bytes) -> bool:
    """Whether the request destroys an engine: nothing else that is under way may hold it up."""
    return _DESTROY.match(request) is not None


def _in_turn(handle: Callable[..., Any]) -> Callable[..., Any]:
    def handle_in_turn(conn: Any) -> Any:
        with compute_permit.held():
            return handle(conn)

    return handle_in_turn
