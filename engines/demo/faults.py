"""Trouble on demand, to test programs that watch over engines. Works only with DEMO_FAULTS=1 in the environment.

`POST /faults` with `{"mode": ...}` chooses the fault:

    hang     no request gets an answer any more, except requests to /faults
    500      every request is answered with 500, except requests to /faults
    not_ok   /health answers 200 with a status other than "ok"
    slow     /health answers 503 "starting"
    busy     a turn is running: a drain waits for the turn, and only SIGKILL ends the engine sooner
    exit     the process ends at once, with exit code `code` (default 1)
    none     the fault ends, now and for later boots

A fault ends by itself after `seconds` (default 3600).

With `"boots": n` the fault comes at the next n boots instead of now. The fault is stored in the data folder, and thus also hits
incarnations that do not exist yet.
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
    """The request for a fault is invalid; the message says why."""


@dataclass(frozen=True)
class Fault:
    """A fault; `seconds` and `code` count only in modes that use them."""

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
        """End the process at once, without any clean-up, if the mode is "exit"."""
        if self.mode == "exit":
            os._exit(self.code)


class Faults:
    """The current fault, and the stored fault for the next boots, in the file `path`. None: faults are switched off."""

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
        """The mode of the current fault."""
        with self._changed:
            return self._mode()

    def order(self, fault: Fault) -> None:
        """Begin the fault now, or store the fault for the next boots; "none" also deletes the stored fault."""
        assert self._path is not None
        if fault.boots:
            self._path.write_text(json.dumps(asdict(fault)))
            return
        if fault.mode == "none":
            self._path.unlink(missing_ok=True)
        self._begin(fault)

    def boot(self) -> Fault:
        """Begin the stored fault, if any, and count the boot."""
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
        """Block the calling thread for as long as the current fault has `mode`."""
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
