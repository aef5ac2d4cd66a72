"""When a worker counts as stalled: it takes nothing, although Valkey answers, it holds no lease, and work is due."""

from datetime import timedelta

import pytest
from django.db import connection
from django.db.models import F

from audit import actors
from engines import lifecycle, operations
from engines.models import Operation
from engines.worker import renewal
from engines.worker.renewal import Stall
from tests.freezing import frozen_valkey

LOOK_S = 5.0  # between two looks


@pytest.fixture
def due(product, settings):
    """An operation that was sent, and that no worker has claimed for longer than a healthy worker needs."""
    settings.ENV = settings.ENV.model_copy(update={"lease_renew_s": LOOK_S})
    operation = lifecycle.provision(product, "alice", by=actors.product(product.slug))
    Operation.objects.update(due_at=F("due_at") - timedelta(seconds=renewal.stalled_s() + 1))
    return operation


@pytest.fixture
def stall(due):
    renewal._last_claim -= 3600.0
    return Stall([due.queue])


def look(stall, passed_s=LOOK_S):
    """Look again as if that many seconds had gone by; returns how many looks long the worker has been stalled."""
    stall._looked -= passed_s
    return stall.look() // LOOK_S


def test_worker_that_takes_no_due_work_is_stalled_for_longer_with_each_look(stall):
    assert [look(stall) for _ in range(3)] == [1, 2, 3]


def test_worker_that_holds_a_lease_is_not_stalled(stall, due):
    look(stall)
    with renewal.held(operations.claim(due.pk)):
        assert look(stall) == 0


def test_worker_that_has_claimed_since_the_last_look_is_not_stalled(stall, due):
    assert [look(stall), look(stall)] == [1, 2]
    with renewal.held(operations.claim(due.pk)):
        pass
    Operation.objects.update(state="pending", lease_until=None)
    assert look(stall) == 0
    renewal._last_claim -= 3600.0
    assert look(stall) == 1


def test_time_without_valkey_is_not_held_against_a_worker(stall):
    assert look(stall) == 1
    with frozen_valkey():
        assert look(stall) == 0
    assert look(stall) == 0  # the breaker is open


def test_time_without_postgresql_is_not_held_against_a_worker(stall, superuser):
    assert look(stall) == 1
    superuser.execute("ALTER ROLE roundhouse_app NOLOGIN")
    try:
        superuser.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'roundhouse_app'")
        connection.pool.drain()
        connection.pool.timeout, usual = 0.6, connection.pool.timeout
        assert look(stall) == 0
    finally:
        superuser.execute("ALTER ROLE roundhouse_app LOGIN")
        connection.pool.timeout = usual
    assert look(stall) == 1


def test_pause_of_the_process_itself_is_not_held_against_it(stall):
    """It was frozen, or its machine slept."""
    assert [look(stall), look(stall, 100), look(stall)] == [1, 0, 1]


def test_worker_is_not_stalled_without_due_work_of_its_queues(stall, due):
    assert look(Stall(["background"])) == 0
    Operation.objects.update(due_at=F("created_at"))
    assert look(stall) == 0


def test_operation_that_nobody_sends_again_says_nothing_about_a_worker(stall):
    """Beat is away, and the message was lost with Valkey."""
    Operation.objects.update(sent_at=F("sent_at") - timedelta(seconds=renewal.stalled_s() + 1))
    assert look(stall) == 0
