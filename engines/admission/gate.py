"""A gate before locks that a hot thread may have to wait for: few go in at a time, and nobody queues behind one that is stuck."""

import threading
import time
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

from engines.errors import Crowded

# Taking the locks and stating an intent takes a hundredth of that. With less, fifty wakes at once on a busy machine were refused
# for nothing but their number; a lock that is stuck costs the hot threads this long once.
PATIENCE_S = 1.0


class Gate:
    """Lets one in for each key, and `places` in all."""

    def __init__(self, places: int) -> None:
        self._places = places
        self._entered: dict[Hashable, float] = {}  # by key: when who is in came in, monotonic clock
        self._left = threading.Condition()

    @contextmanager
    def enter(self, key: Hashable) -> Iterator[None]:
        """Be the one for this key. Raises Crowded once who is in the way has been in for PATIENCE_S."""
        with self._left:
            while (since := self._in_the_way(key)) is not None:
                if not self._left.wait(max(0.0, since + PATIENCE_S - time.monotonic())):
                    raise Crowded("Others wait already for what this needs; nothing was begun. Try again in a few seconds.")
            self._entered[key] = time.monotonic()
        try:
            yield
        finally:
            with self._left:
                del self._entered[key]
                self._left.notify_all()

    def _in_the_way(self, key: Hashable) -> float | None:
        """When whoever has to leave first came in; None when there is room."""
        if key in self._entered:
            return self._entered[key]
        return min(self._entered.values()) if len(self._entered) >= self._places else None
