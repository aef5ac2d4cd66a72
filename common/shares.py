"""Places for which several owners compete, such as threads: no owner may take all of them from the others.

Which class fits depends on whether a taken place can be had back:

- `ReservedPlaces`: its holder keeps a place until it is done. Some places therefore stay free, for owners with fewer places.
- `LentPlaces`: its holder can be told to go. A single owner may therefore have all places, until a second owner asks for one.

Both are for the threads of one process.
"""

import threading
from collections import Counter
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

RETURN_S = 1.0  # seconds in which the holder of a place that was called back returns the place


class ReservedPlaces:
    """`count` places, of which an owner gets `count - reserve` at most; less, the more places other owners have.

    An owner gets a further place only while its places are at most (count - reserve) / reserve times the free places. An owner
    without a place gets any free place. A single greedy owner leaves `reserve` places free; several leave at least one place
    free for an owner without a place.

    Source: Choudhury and Hahne, "Dynamic queue length thresholds for shared-memory packet switches", IEEE/ACM Transactions on
    Networking 6 (1998).
    """

    def __init__(self, count: int, reserve: int) -> None:
        self._count, self._reserve = count, reserve
        self._taken: Counter[Hashable] = Counter()  # places by owner
        self._lock = threading.Lock()

    @property
    def taken(self) -> int:
        """How many places are taken, by all owners."""
        return self._taken.total()

    def take(self, owner: Hashable) -> bool:
        """Take a place; False if the owner has its share, or no place is free. Does not wait."""
        with self._lock:
            free_then = self._count - self._taken.total() - 1
            share = (self._count - self._reserve) * free_then // self._reserve
            if free_then < 0 or (self._taken[owner] and self._taken[owner] >= share):
                return False
            self._taken[owner] += 1
            return True

    def give_back(self, owner: Hashable) -> None:
        """Give a taken place back."""
        with self._lock:
            self._taken[owner] -= 1
            if not self._taken[owner]:
                del self._taken[owner]

    @contextmanager
    def hold(self, owner: Hashable) -> Iterator[bool]:
        """Hold a place during the block; False if there is none for the owner, as in `take`."""
        is_taken = self.take(owner)
        try:
            yield is_taken
        finally:
            if is_taken:
                self.give_back(owner)


class Place:
    """A lent place. Its holder looks at `is_called_back` every now and then, and then gives the place back within RETURN_S."""

    def __init__(self, places: "LentPlaces", owner: Hashable) -> None:
        self.owner, self.is_called_back = owner, False
        self._places = places

    def give_back(self) -> None:
        """Give the place back. To be called once."""
        self._places._receive(self)


class LentPlaces:
    """`count` places, shared out evenly among all owners who want some; an owner who is alone may have all of them.

    When no place is free, an owner with fewer places than another owner gets one of the other owner's places: the owner with the
    most places loses the place that it took last. The owners' numbers of places then differ by one at most.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._taken: list[Place] = []  # in the order of taking
        self._promised: list[Place] = []  # to threads that wait for a place, in the order of asking
        self._changed = threading.Condition()

    def take(self, owner: Hashable, wait_s: float = 0.0) -> Place | None:
        """Take a place; None if none is free and no owner has more places than `owner`, or if none came back in time.

        Waits up to RETURN_S for a place that is called back for `owner`, and in any case `wait_s` seconds for any place.
        """
        place = Place(self, owner)
        with self._changed:
            if len(self._taken) < self._count:
                self._taken.append(place)
                return place
            longest_s = max(wait_s, RETURN_S) if self._call_back_for(owner) else wait_s
            self._promised.append(place)
            if self._count and self._changed.wait_for(lambda: place in self._taken, longest_s):
                return place
            self._promised.remove(place)
            return None

    def _call_back_for(self, owner: Hashable) -> bool:
        """Call a place back from the owner with the most places; False if no owner has two more than `owner`."""
        kept = Counter(place.owner for place in self._taken if not place.is_called_back)
        largest, most = max(kept.items(), key=lambda item: item[1], default=(owner, 0))
        if most < kept[owner] + sum(place.owner == owner for place in self._promised) + 2:
            return False
        last = next(place for place in reversed(self._taken) if place.owner == largest and not place.is_called_back)
        last.is_called_back = True
        return True

    def _receive(self, place: Place) -> None:
        with self._changed:
            self._taken.remove(place)
            if self._promised:
                self._taken.append(self._promised.pop(0))
                self._changed.notify_all()
