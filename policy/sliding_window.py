"""The arithmetic of a sliding window: the number of admits fitting now, and the time until one more fits.

The window slides over two counts: the admits of the current minute and of the previous minute. The previous count fades out
linearly over a minute. The method is the sliding window counter of
https://limits.readthedocs.io/en/stable/strategies.html; the library `limits` keeps the counts.
"""

import math
from dataclasses import dataclass

MINUTE_S = 60


@dataclass(frozen=True)
class Window:
    """The rest of a limit: `remaining` admits fit now, and `remaining` + 1 admits fit after `reset_s` whole seconds."""

    limit: int
    remaining: int
    reset_s: int

    def headers(self) -> dict[str, str]:
        """Return the three `RateLimit-*` headers of draft-ietf-httpapi-ratelimit-headers."""
        return {
            "RateLimit-Limit": str(self.limit),
            "RateLimit-Remaining": str(self.remaining),
            "RateLimit-Reset": str(self.reset_s),
        }


CLOSED = Window(0, 0, MINUTE_S)
"""The window of a limit of 0 admits."""


@dataclass(frozen=True)
class Counts:
    """The number of admits in the previous and the current minute, and the seconds until both counts expire."""

    previous: int
    previous_ends_s: float
    current: int
    current_ends_s: float

    def window(self, limit: int) -> Window:
        """Return the rest of `limit` after subtracting both counts."""
        used = self._used()
        if not used:
            return Window(limit, limit, 0)
        remaining = max(0, limit - used)
        return Window(limit, remaining, max(1, math.ceil(self._fewer_in_s(limit - remaining))))

    def _used(self) -> int:
        return math.floor(self.previous * self.previous_ends_s / MINUTE_S) + self.current

    def _fewer_in_s(self, count: int) -> float:
        """Return the seconds until the window counts fewer than `count` admits."""
        if self.current < count and self.previous:
            return self.previous_ends_s - MINUTE_S * (count - self.current) / self.previous
        fades_in_s = self.current_ends_s - MINUTE_S  # until the current minute becomes the previous one and fades
        return fades_in_s + MINUTE_S * (1 - count / max(self.current, count))
