"""How often the Docker backend asks a daemon while it waits. No daemon is needed, and no time goes by."""

from collections import Counter
from itertools import pairwise
from types import SimpleNamespace

import pytest
from docker.errors import APIError

from engines.backends.base import BackendUnavailable, NetworkUnguarded
from engines.backends.docker import Options, daemon, guard
from tests.simulated_clock import simulate


def test_rounds_of_a_verb_wait_longer_each_time(monkeypatch):
    """A volume in use was asked for 50 times a second: 1,500 times in this verb."""
    clock = simulate(monkeypatch, daemon)
    asked = daemon.Daemon("unix:///no/such/socket", timeout_s=30)
    rounds = []
    with pytest.raises(BackendUnavailable, match="concurrent changes prevent success"), asked.verb("remove"):
        rounds.extend(clock.now for _ in asked.rounds())
    pauses = [later - earlier for earlier, later in pairwise(rounds)]
    assert pauses == pytest.approx(sorted(pauses))
    assert 60 <= len(rounds) <= 70
    assert 20 < clock.now <= 30


class Restless(daemon.Daemon):
    """A daemon whose guard ends as soon as the guard was started; `asked` counts the questions."""

    def __init__(self):
        super().__init__("unix:///no/such/socket", timeout_s=60)
        self.asked = Counter()
        self.labels = {}

    def _client(self):
        ask = {"create_container_from_config": self.create_guard, "start": self.start}
        return SimpleNamespace(inspect_container=self.inspect, **ask)

    def create_guard(self, config, name):
        """The guard's container is there already, of another worker."""
        self.asked["create"] += 1
        raise APIError("taken", SimpleNamespace(status_code=409), "the name is already in use")

    def start(self, name):
        self.asked["start"] += 1

    def inspect(self, name):
        self.asked["inspect"] += 1
        return {"Config": {"Labels": self.labels}, "State": {"Running": False, "StartedAt": ""}}


def test_start_of_a_guard_that_never_runs_asks_few_times_and_gives_up(monkeypatch):
    clock, restless = simulate(monkeypatch, daemon), Restless()
    starting = guard.Guard(restless, Options())
    restless.labels = {guard.RULES: starting._rules}
    with pytest.raises(NetworkUnguarded, match="does not put the network rules in force"), restless.verb("start"):
        starting.check()
    assert restless.asked == {"inspect": guard.TRIES + 1, "create": guard.TRIES, "start": guard.TRIES}
    assert 3 < clock.now < 6
