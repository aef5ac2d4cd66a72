"""Trouble on demand, for tests of whatever watches over engines. Exists only with DEMO_FAULTS=1 in the environment.

`POST /faults` with `{"mode": ...}`:

    hang     no request is answered any more (other than to /faults)
    500      every request is answered with 500 (likewise)
    not_ok   /health answers 200 with a status that is not "ok"
    slow     /health answers 503 "starting"
    busy     a turn is running: a drain waits for it, so only SIGKILL ends the engine sooner
    exit     the process ends at once, with exit code `code` (default 1)
    none     all is well again, now and at later boots

Trouble passes by itself after `seconds` (default 3600).

With `"boots": n` the trouble comes with each of the next n boots instead of now; it is kept in the data folder, so that it also
meets an incarnation that does not exist yet.
"""

import json
import os
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MODES = ("hang", "500", "not_ok", "slow", "busy", "exit", "none")
LONG_S = 3600.0
HIGHEST = {"seconds": 1_000_000, "code": 255, "boots": 1_000_000}


class WrongFault(Exception):
    """The order for a fault makes no sense; the message says why."""


@dataclass(frozen=True)
class Fault:
    """One kind of trouble; `seconds` and `code` where the mode has a use for them."""

    mode: str = "none"
    seconds: float = LONG_S
    code: int = 1
    boots: int = 0

    @classmethod
    def parse(cls, order: Any) -> "Fault":
        """From the body of `POST /faults`. Raises WrongFault."""
        if not isinstance(order, dict) or order.get("mode") not in MODES:
            raise WrongFault(f"mode must be one of {', '.join(MODES)}")
        numbers = {name: order.get(name, default) for name, default in (("seconds", LONG_S), ("code", 1), ("boots", 0))}
        for name, number in numbers.items():
            if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number <= HIGHEST[name]:
                raise WrongFault(f"{name} must be a number from 0 to {HIGHEST[name]}")
        return cls(order["mode"], float(numbers["seconds"]), int(numbers["code"]), int(numbers["boots"]))

    def exit_if_due(self) -> None:
        """End the process here and now if that is the trouble; nothing is tidied up."""
        if self.mode == "exit":
            os._exit(self.code)


class Faults:
    """The trouble there is now, and what is kept for the next boots in `path` (None: faults are switched off)."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._changed = threading.Condition()
        self._now = Fault()
        self._until = 0.0

    @property
    def enabled(self) -> bool:
        return self._path is not None

    @property
    def mode(self) -> str:
        """The mode that holds now."""
        with self._changed:
            return self._mode()

    def order(self, fault: Fault) -> None:
        """Make trouble now, or keep it for the next boots; "none" also forgets what was kept."""
        assert self._path is not None
        if fault.boots:
            self._path.write_text(json.dumps(asdict(fault)))
            return
        if fault.mode == "none":
            self._path.unlink(missing_ok=True)
        self._begin(fault)

    def boot(self) -> Fault:
        """Begin the trouble that was kept for this boot, and count it."""
        if self._path is None or not self._path.exists():
            return Fault()
        kept = json.loads(self._path.read_text())
        if kept["boots"] > 1:
            self._path.write_text(json.dumps({**kept, "boots": kept["boots"] - 1}))
        else:
            self._path.unlink()
        fault = Fault(**{**kept, "boots": 0})
        self._begin(fault)
        return fault

    def outlast(self, mode: str) -> None:
        """Block the calling thread for as long as `mode` is the trouble."""
        with self._changed:
            while self._mode() == mode:
                self._changed.wait(max(0.0, self._until - time.monotonic()))

    def _mode(self) -> str:
        return self._now.mode if time.monotonic() < self._until else "none"

    def _begin(self, fault: Fault) -> None:
        with self._changed:
            self._now = fault
            self._until = time.monotonic() + fault.seconds
            self._changed.notify_all()
