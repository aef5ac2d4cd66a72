"""A gate before locks that a hot thread may have to wait for.

Few threads pass the gate at a time, and no thread waits long behind a stuck thread.
"""

import threading
import time
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

from engines.errors import Crowded

# Taking the locks and stating an intent takes a hundredth of PATIENCE_S. With a shorter patience, fifty wakes at once on a busy
# machine were refused only because of their number. A stuck lock costs the hot threads PATIENCE_S once.
PATIENCE_S = 1.0
# The patience of admits beyond their product's share of the hot threads, which other products need. Where no thread is stuck, the
# lock passes on within hundredths of a second, and thus many wakes at once still pass.
SHORT_PATIENCE_S = 0.25


class Gate:
    """Lets in a single thread per key, and `places` threads in all."""

    def __init__(self, places: int) -> None:
        self._places = places
        self._entered: dict[Hashable, float] = {}  # by key: when its thread entered (monotonic clock)
        self._left = threading.Condition()

    @contextmanager
    def enter(self, key: Hashable, patience_s: float = PATIENCE_S) -> Iterator[None]:
        """Enter as the only thread with `key`. Raises Crowded once the thread in the way has been inside for `patience_s`."""
        with self._left:
            while (since := self._in_the_way(key)) is not None:
                if not self._left.wait(max(0.0, since + patience_s - time.monotonic())):
                    raise Crowded("Other requests wait for the same locks; nothing was begun. Try again in a few seconds.")
            self._entered[key] = time.monotonic()
        try:
            yield
        finally:
            with self._left:
                del self._entered[key]
                self._left.notify_all()

    def _in_the_way(self, key: Hashable) -> float | None:
        """When the thread that must leave first entered (monotonic clock); None when `key` may enter now."""
        if key in self._entered:
            return self._entered[key]
        return min(self._entered.values()) if len(self._entered) >= self._places else None
