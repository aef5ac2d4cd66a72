"""The engine's memory: a few counters in SQLite. Their values prove that the volume survives the death of the process."""

import sqlite3
import threading
from pathlib import Path


class Brain:
    """Counters in a file; safe for many threads. Raises sqlite3.Error, or OSError if the file cannot be used."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(path, timeout=5, isolation_level=None, check_same_thread=False)
        self._connection.execute("CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL)")

    def add(self, name: str) -> int:
        """Add 1 to the counter; returns the new total, which is already on disk."""
        query = "INSERT INTO counters VALUES (?, 1) ON CONFLICT (name) DO UPDATE SET value = value + 1 RETURNING value"
        with self._lock:
            rows: list[tuple[int]] = self._connection.execute(query, (name,)).fetchall()
        return rows[0][0]

    def read(self, name: str) -> int:
        """The total of the counter; 0 for a name without a counter."""
        with self._lock:
            row: tuple[int] | None = self._connection.execute("SELECT value FROM counters WHERE name = ?", (name,)).fetchone()
        return row[0] if row else 0
