"""Whether the calling thread counts among the busy threads of its pool: a thread that only waits for an operation does not.

with busy_thread.counted(pool.start_another):   # the pool, around a request
    ...
    busy_thread.stand_aside()                   # the request, before it waits: the pool starts another request instead
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

DESTROYS = 16  # threads that open destroys, whatever ORCH_WEB_THREADS is: a destroy is opened in a hundredth of a second
MOST_ASIDE = 512  # threads of a process that may stand aside at a time; an idle thread takes a few hundredths of a megabyte
_thread = threading.local()  # `leave`: called once, when the thread does not count any more


@contextmanager
def counted(leave: Callable[[], None]) -> Iterator[None]:
    """Count the thread during the block, or until it stands aside; `leave` is called then."""
    _thread.leave = leave
    try:
        yield
    finally:
        stand_aside()


def stand_aside() -> None:
    """Stop counting the calling thread; nothing happens for a thread that does not count."""
    leave = vars(_thread).pop("leave", None)
    if leave is not None:
        leave()
