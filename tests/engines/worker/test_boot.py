"""How often a slow boot asks the engine, the runtime and the database."""

from collections import Counter
from types import SimpleNamespace

from audit import actors
from engines import health, lifecycle, operations
from engines.backends.base import State
from engines.worker import boot
from tests.simulated_clock import simulate

MINUTE_S = 60.0


def test_slow_boot_asks_with_growing_pauses_until_its_deadline(product, monkeypatch, django_assert_max_num_queries):
    asked = Counter()

    def observe(ref):
        asked["runtime"] += 1
        return State.RUNNING

    def probe():
        asked["engine"] += 1
        return health.Result(False, "http_503")

    lease = operations.claim(lifecycle.provision(product, "alice", by=actors.product("acme")).pk)
    attempt = SimpleNamespace(lease=lease, backend=SimpleNamespace(observe=observe))
    clock = simulate(monkeypatch, boot)
    with django_assert_max_num_queries(75):
        result = boot._probe_until_healthy(attempt, None, SimpleNamespace(probe=probe), MINUTE_S)
    assert not result.ok
    assert MINUTE_S <= clock.now < MINUTE_S + 1
    assert 50 < asked["runtime"] <= 75  # a question to the daemon, which serves all engines of its host
    assert 150 < asked["engine"] < 400
