"""The arithmetic of a sliding window: how many admits fit into it now, and when one more does.

The window slides over two counts, those of this minute and of the minute before: the older count fades out over its last minute.
The method is the sliding window counter of https://limits.readthedocs.io/en/stable/strategies.html, whose library keeps the
counts.
"""

import math
from dataclasses import dataclass

MINUTE_S = 60


@dataclass(frozen=True)
class Window:
    """The rest of a limit: `remaining` admits fit now, and one more than `remaining` fits in `reset_s` whole seconds."""

    limit: int
    remaining: int
    reset_s: int

    def headers(self) -> dict[str, str]:
        """As in draft-ietf-httpapi-ratelimit-headers, in the form with three headers."""
        return {
            "RateLimit-Limit": str(self.limit),
            "RateLimit-Remaining": str(self.remaining),
            "RateLimit-Reset": str(self.reset_s),
        }


CLOSED = Window(0, 0, MINUTE_S)
"""The window of a limit of no admits at all."""


@dataclass(frozen=True)
class Counts:
    """Admits of the last two minutes, each count with the seconds until it expires."""

    previous: int
    previous_ends_s: float
    current: int
    current_ends_s: float

    def window(self, limit: int) -> Window:
        """What these counts leave of the limit."""
        used = self._used()
        if not used:
            return Window(limit, limit, 0)
        remaining = max(0, limit - used)
        return Window(limit, remaining, max(1, math.ceil(self._fewer_in_s(limit - remaining))))

    def _used(self) -> int:
        return math.floor(self.previous * self.previous_ends_s / MINUTE_S) + self.current

    def _fewer_in_s(self, count: int) -> float:
        """Seconds until fewer than `count` admits are in the window."""
        if self.current < count and self.previous:
            return self.previous_ends_s - MINUTE_S * (count - self.current) / self.previous
        fades_in_s = self.current_ends_s - MINUTE_S  # until this minute is the older one, whose count fades
        return fades_in_s + MINUTE_S * (1 - count / max(self.current, count))
