"""The engine itself: its phases, its turns, its health. `server` adds the HTTP."""

import hashlib
import hmac
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from .brain import Brain
from .faults import Fault, Faults
from .settings import Settings

MAX_TURNS = 32
LAST_ANSWERS_S = 1.0  # how long the drain waits for unfinished answers; some may never end (see the fault "hang")


class Unready(Exception):
    """No turn can begin now: the engine is starting or draining, or has MAX_TURNS turns already."""


class Engine:
    """State shared by all requests. Phases: starting, ok, draining."""

    def __init__(self, settings: Settings, faults: Faults) -> None:
        self.settings = settings
        self.faults = faults
        self.phase = "starting"
        self.boots = 0
        self._brain: Brain | None = None
        self._turns = 0
        self._answers = 0
        self._changed = threading.Condition()
        self._born = time.monotonic()

    def boot(self, is_stopped_within: Callable[[float], bool]) -> bool:
        """Open the brain and become ready. Returns False if stopped during the boot's delay. Raises OSError, sqlite3.Error."""
        self.settings.database.parent.mkdir(parents=True, exist_ok=True)
        fault = self.faults.boot()
        fault.exit_if_due()
        if fault.mode == "busy":
            self._be_busy()
        if is_stopped_within(self.settings.boot_delay_s):
            return False
        brain = Brain(self.settings.database)
        self.boots = brain.add("boots")
        self._brain = brain
        self.phase = "ok"
        print(f"engine ready on port {self.settings.port}, boot {self.boots}", flush=True)
        return True

    def drain(self) -> None:
        """Refuse new turns, and return when the last turn has ended."""
        with self._changed:
            self.phase = "draining"
            print(f"engine drains, {self._turns} turns to finish", flush=True)
            self._changed.wait_for(lambda: self._turns == 0)
            self._changed.wait_for(lambda: self._answers == 0, LAST_ANSWERS_S)

    def is_key(self, key: str) -> bool:
        """Whether `key` is the engine's key; takes the same time for every wrong key."""
        return hmac.compare_digest(hashlib.sha256(key.encode()).hexdigest(), self.settings.key_hash)

    def prove(self, nonce: str) -> str:
        """The proof that an answer to a request with this nonce is the engine's own: an HMAC, keyed by the hash of the key."""
        return hmac.new(self.settings.key_hash.encode(), nonce.encode(), "sha256").hexdigest()

    def health(self) -> tuple[int, dict[str, Any]]:
        """HTTP status and body of `/health`."""
        mode = self.faults.mode
        phase = "starting" if mode == "slow" and self.phase == "ok" else self.phase
        status = "degraded" if mode == "not_ok" and phase == "ok" else phase
        catalog = self.settings.catalog
        subsystems = {
            "brain": "ok" if self._brain else "closed",
            "catalog": "ok" if catalog and catalog.is_dir() else "none",
            "turns": self._turns,
        }
        body = {"status": status, "uptime_seconds": round(time.monotonic() - self._born, 3), "subsystems": subsystems}
        return (200 if phase == "ok" else 503), body

    def count(self) -> int:
        """The number of finished turns in the whole life of the brain. Raises Unready before the brain is open."""
        return self._open_brain().read("turns")

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Hold a turn open; a drain waits for its end. Raises Unready."""
        with self._changed:
            if self.phase != "ok":
                raise Unready(f"The engine is {self.phase}.")
            if self._turns >= MAX_TURNS:
                raise Unready(f"The engine is busy with {self._turns} turns.")
            self._turns += 1
        try:
            yield
        finally:
            self._change_turns(-1)

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Count a request of any kind as unfinished, until its answer is sent."""
        with self._changed:
            self._answers += 1
        try:
            yield
        finally:
            with self._changed:
                self._answers -= 1
                self._changed.notify_all()

    def finish_turn(self, echo: Any) -> dict[str, Any]:
        """Count the turn; returns the data of its `done` event."""
        counter = self._open_brain().add("turns")
        print(f"turn {counter} done", flush=True)
        return {"echo": echo, "counter": counter, "boots": self.boots}

    def order(self, fault: Fault) -> None:
        """Begin a fault, now or with the next boots; see `faults`."""
        self.faults.order(fault)
        if fault.mode == "busy" and not fault.boots:
            self._be_busy()

    def _be_busy(self) -> None:
        """Begin a turn that lasts as long as the fault."""

        def finish() -> None:
            self.faults.outlast("busy")
            self._change_turns(-1)

        self._change_turns(1)
        threading.Thread(target=finish, daemon=True).start()

    def _change_turns(self, by: int) -> None:
        with self._changed:
            self._turns += by
            self._changed.notify_all()

    def _open_brain(self) -> Brain:
        if self._brain is None:
            raise Unready("The engine is starting.")
        return self._brain
