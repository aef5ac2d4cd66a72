"""A clock for tests of long waits: a pause costs nothing, and moves the clock."""

from types import ModuleType

import pytest


class SimulatedClock:
    """Stands in for the module `time` in a module of ours, so that a test can count what is asked during a wait of a minute."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds


def simulate(monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> SimulatedClock:
    """Give the module a simulated clock for the length of the test."""
    clock = SimulatedClock()
    monkeypatch.setattr(module, "time", clock)
    return clock
