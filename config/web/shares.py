"""How much of the web server one address may hold: open connections, and bytes that wait in memory.

Trusted proxies are exempt, because a proxy carries the connections of many clients.
"""

from collections import Counter
from collections.abc import Callable

FREE = 16 * 1024  # bytes that every connection may hold; only the bytes above count
PER_ADDRESS = 16 * 1024 * 1024  # bytes
ALTOGETHER = 128 * 1024 * 1024  # bytes, of all addresses


class Shares:
    """Open connections and waiting bytes, by address. Only the thread that accepts connections may call the methods."""

    def __init__(self, connections: int, is_exempt: Callable[[str], bool]) -> None:
        self._most, self._is_exempt = connections, is_exempt
        self._open: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()

    def enter(self, address: str) -> bool:
        """Count a new connection; return False, and count nothing, if the address has as many as it may have."""
        if self._open[address] >= self._most and not self._is_exempt(address):
            return False
        self._open[address] += 1
        return True

    def leave(self, address: str) -> None:
        self._open[address] -= 1
        if self._open[address] <= 0:
            del self._open[address]

    def hold(self, address: str, held: int, before: int) -> bool:
        """Note that a connection holds `held` bytes, and `before` until now; return False if this is more than allowed."""
        more = max(0, held - FREE) - max(0, before - FREE)
        if not more:
            return True
        self._bytes[address] += more
        if self._bytes[address] <= 0:
            del self._bytes[address]
        if more < 0:
            return True
        within = self._bytes[address] <= PER_ADDRESS or self._is_exempt(address)
        return within and self._bytes.total() <= ALTOGETHER
