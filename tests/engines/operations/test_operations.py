"""An operation's row as a queue: sent, sent again, claimed, fenced, and waited for."""

import threading
import time
from datetime import timedelta

import pytest
from django.db import connection
from django.db.models.functions import Now
from django.utils import timezone

from audit import actors
from common import valkey
from config.celery import app
from engines import lifecycle, operations
from engines.errors import OperationNotFound, Unfinished, Unsuccessful
from engines.lifecycle import outcomes
from engines.models import Operation, OperationState
from engines.operations import LeaseLost, queues, waiting
from tests.conftest import make_product
from tests.engines.crew import in_parallel
from tests.engines.registry import put_engine, put_operation
from tests.freezing import frozen_valkey

ACME = actors.product("acme")


@pytest.fixture
def operation(product):
    """A pending stop that nobody was told of."""
    return put_operation(put_engine(product))


def sent():
    """Messages that wait for a worker."""
    with app.connection_for_read() as broker:
        return broker.default_channel.client.llen("lifecycle")


# -- sending -----------------------------------------------------------------------------------------------------------------


def test_verb_sends_its_operation_once_it_is_committed(product):
    lifecycle.stop(put_engine(product), by=ACME)
    assert sent() == 1


def test_broker_that_is_frozen_neither_fails_nor_holds_up_a_verb(product, api):
    put_engine(product)
    with frozen_valkey():
        began = time.monotonic()
        response = api.call("POST", "/engines/alice/stop", Prefer="respond-async")
        assert time.monotonic() - began < 3
    assert response.status_code == 202
    assert Operation.objects.get().state == "pending"


def test_due_operation_that_nobody_claims_is_sent_again(operation):
    assert queues.dispatch() == 1
    assert queues.dispatch() == 0
    Operation.objects.update(sent_at=Now() - timedelta(seconds=11))
    assert queues.dispatch() == 1
    assert sent() == 2


@pytest.mark.parametrize(
    "columns",
    [
        {"due_at": timezone.now() + timedelta(hours=1)},
        {"state": "running", "attempt": 1, "lease_until": timezone.now() + timedelta(hours=1)},
        {"state": "succeeded", "finished_at": timezone.now()},
        {"state": "superseded", "finished_at": timezone.now()},
    ],
)
def test_operation_that_is_not_due_is_not_sent_again(operation, columns):
    Operation.objects.update(**columns)
    assert queues.dispatch() == 0
    assert operations.claim(operation.pk) is None


def test_operation_whose_worker_died_is_sent_again(operation):
    operations.claim(operation.pk)
    assert queues.dispatch() == 0
    Operation.objects.update(lease_until=Now() - timedelta(seconds=1))
    assert queues.dispatch() == 1


def test_resending_at_once_sends_each_once(product):
    other = make_product("other")
    for number in range(20):
        put_operation(put_engine(product if number % 2 else other, f"user-{number}"))
    assert sum(in_parallel(lambda _: queues.dispatch(), range(6))) == 20


# -- claiming and fencing ----------------------------------------------------------------------------------------------------


def test_claims_at_once_give_one_lease(operation):
    leases = in_parallel(lambda _: operations.claim(operation.pk), range(12))
    (lease,) = [lease for lease in leases if lease is not None]
    assert lease.attempt == 1
    operation.refresh_from_db()
    assert (operation.state, operation.attempt) == ("running", 1)
    assert operation.lease_until > timezone.now()


def test_attempt_that_lost_its_lease_writes_nothing(operation):
    old = operations.claim(operation.pk)
    Operation.objects.update(lease_until=Now() - timedelta(seconds=1))
    new = operations.claim(operation.pk)
    assert (old.attempt, new.attempt) == (1, 2)
    for write in (operations.check, lambda lease: operations.step(lease, "late")):
        with pytest.raises(LeaseLost):
            write(old)
    operations.renew([old])
    assert not operations.release(old, delay_s=100)
    assert not lifecycle.settle(old, operation, outcomes.succeeded(operation, operation.engine, 1))
    operation.engine.refresh_from_db()
    assert operation.engine.status == "running"
    operations.check(new)
    assert lifecycle.settle(new, operation, outcomes.succeeded(operation, operation.engine, 1))
    operation.engine.refresh_from_db()
    assert operation.engine.status == "stopped"


def test_superseded_attempt_writes_nothing(operation):
    lease = operations.claim(operation.pk)
    lifecycle.destroy(operation.engine, by=ACME)
    with pytest.raises(LeaseLost):
        operations.step(lease, "late")
    assert not lifecycle.settle(lease, operation, outcomes.succeeded(operation, operation.engine, 1))
    operation.engine.refresh_from_db()
    assert operation.engine.status == "destroying"


def test_renewed_lease_is_not_claimed(operation):
    lease = operations.claim(operation.pk)
    Operation.objects.update(lease_until=Now() + timedelta(seconds=1))
    operations.renew([lease])
    operation.refresh_from_db()
    assert (operation.lease_until - timezone.now()).total_seconds() > 10


def test_released_operation_is_due_after_its_pause(operation):
    lease = operations.claim(operation.pk)
    assert operations.release(lease, delay_s=60)
    assert operations.claim(operation.pk) is None
    Operation.objects.update(due_at=Now())
    assert operations.claim(operation.pk).attempt == 2


# -- waiting -----------------------------------------------------------------------------------------------------------------


def end_after(operation, seconds, state=OperationState.SUCCEEDED):
    """End the operation from another thread, as a worker would."""

    def end():
        lease = operations.claim(operation.pk)
        threading.Event().wait(seconds)
        operations.close(lease, state, error=("", "") if state == OperationState.SUCCEEDED else ("boot_timeout", "Too late."))
        connection.close()

    thread = threading.Thread(target=end)
    thread.start()
    return thread


@pytest.mark.parametrize("frozen", [False, True])
def test_waiter_wakes_when_the_operation_ends_with_and_without_valkey(operation, frozen):
    thread = end_after(operation, 0.3)
    began = time.monotonic()
    if frozen:
        with frozen_valkey():
            ended = operations.wait(operation.pk, 10)
    else:
        ended = operations.wait(operation.pk, 10)
    assert ended.state == "succeeded"
    assert 0.25 < time.monotonic() - began < 1.5
    thread.join()


def test_waiter_holds_no_database_connection(operation):
    """Seven wait at once, and none of them has a connection for longer than a look."""

    def in_use():
        stats = connection.pool.get_stats()
        return stats["pool_size"] - stats["pool_available"]

    def wait():
        operations.wait(operation.pk, 1.5)
        connection.close()

    waiters = [threading.Thread(target=wait) for _ in range(7)]
    connection.close()
    others = in_use()  # threads of other tests
    for waiter in waiters:
        waiter.start()
    looks = []
    while any(waiter.is_alive() for waiter in waiters):
        looks.append(in_use())
        threading.Event().wait(0.01)
    assert sorted(looks)[len(looks) // 2] <= others + 1, looks


def test_waiter_looks_once_for_any_number_of_false_announcements(operation, django_assert_max_num_queries):
    stopped = threading.Event()

    def announce():
        while not stopped.is_set():
            valkey.client().publish(f"operation:{operation.pk}", "ended")

    liar = threading.Thread(target=announce)
    liar.start()
    try:
        # Two at the beginning, one at the end, one for the announcement, and one every POLL_S.
        with django_assert_max_num_queries(4 + int(1.0 / waiting.POLL_S)) as sent:
            assert operations.wait(operation.pk, 1.0).is_open
        assert sent.final_queries > 3
    finally:
        stopped.set()
        liar.join()


def test_waiter_gives_up_at_its_deadline(operation):
    began = time.monotonic()
    assert operations.wait(operation.pk, 0.4).is_open
    assert 0.35 < time.monotonic() - began < 1
    with pytest.raises(Unfinished):
        operations.finish(operation, 0)


def test_waiter_is_told_of_a_failure(operation):
    thread = end_after(operation, 0.1, OperationState.FAILED)
    with pytest.raises(Unsuccessful, match="was not healthy within"):
        operations.finish(operation, 5)
    thread.join()


def test_operation_of_another_product_is_not_found(operation):
    assert operations.get(operation.engine.product, operation.pk) == operation
    with pytest.raises(OperationNotFound):
        operations.get(make_product("other"), operation.pk)


def test_operation_of_an_unknown_cause_counts_as_requested(running_engine):
    """After a return from a later version, which may know more causes, its operations still end."""
    operation = lifecycle.stop(running_engine, by=ACME)
    Operation.objects.filter(pk=operation.pk).update(params={"cause": "a later one"})
    operation = Operation.objects.select_related("engine__product").get(pk=operation.pk)
    lease = operations.claim(operation.pk)
    assert lifecycle.settle(lease, operation, outcomes.succeeded(operation, operation.engine, 1))
