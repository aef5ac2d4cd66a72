"""Fair shares: the queue of an operation, the caps on what is in flight, and whose turn is next."""

from collections import Counter
from datetime import timedelta

import pytest
from django.db.models.functions import Now

from audit import actors
from config.celery import app
from engines import lifecycle, operations
from engines.lifecycle import outcomes
from engines.models import Kind, Operation, OperationState, Status, Trigger
from engines.operations import queues
from engines.worker import renewal
from tests.conftest import make_product
from tests.engines.crew import in_parallel
from tests.engines.registry import put_engine, put_operation

ACME = actors.product("acme")
PLACES = {"product_max_operations": 3, "max_boots": 6, "wake_boots": 2}


@pytest.fixture(autouse=True)
def _places(settings):
    """Few places, so that few operations fill them."""
    settings.ENV = settings.ENV.model_copy(update=PLACES)


def put(product, kind, count=1, queue="lifecycle"):
    """Pending operations of the product, each on an engine of its own, oldest first."""
    name = f"{product.slug}-{kind}-{queue}-{Operation.objects.count()}"
    return [put_operation(put_engine(product, f"{name}-{number}"), kind, queue=queue) for number in range(count)]


def claim(waiting):
    """Claim each; those that found room."""
    return [operation for operation in waiting if operations.claim(operation.pk)]


def messages(queue="lifecycle"):
    with app.connection_for_read() as broker:
        return broker.default_channel.client.llen(queue)


@pytest.mark.parametrize(
    ("kind", "trigger", "queue"),
    [
        (Kind.WAKE, Trigger.REQUESTED, "wake"),
        (Kind.PROVISION, Trigger.REQUESTED, "lifecycle"),
        (Kind.STOP, Trigger.REQUESTED, "lifecycle"),
        (Kind.DESTROY, Trigger.REQUESTED, "lifecycle"),
        (Kind.RESTART, Trigger.REQUESTED, "lifecycle"),
        (Kind.RESTART, Trigger.HEALTH, "background"),
        (Kind.RESTART, Trigger.HOST_RESTARTED, "background"),
        (Kind.STOP, Trigger.RECONCILED, "background"),
        (Kind.SLEEP, Trigger.REQUESTED, "background"),
    ],
)
def test_choose_gives_each_its_queue(kind, trigger, queue):
    assert queues.choose(kind, trigger) == queue


def test_verb_sends_to_the_queue_of_its_operation(product):
    lifecycle.wake(put_engine(product, "a", Status.SLEEPING), by=ACME)
    lifecycle.sleep(put_engine(product, "b"), by=ACME)
    lifecycle.stop(put_engine(product, "c"), by=ACME)
    assert [messages(queue) for queue in ("wake", "lifecycle", "background")] == [1, 1, 1]


# -- caps --------------------------------------------------------------------------------------------------------------------


def test_claim_is_refused_beyond_the_products_cap(product):
    waiting = put(product, Kind.PROVISION, 5)
    assert claim(waiting) == waiting[:3]
    assert claim(put(make_product("other"), Kind.PROVISION)) != []


def test_claim_that_is_refused_waits_for_its_turn(product):
    waiting = put(product, Kind.PROVISION, 4)
    Operation.objects.update(sent_at=Now())
    claim(waiting)
    refused = Operation.objects.get(pk=waiting[3].pk)
    assert (refused.state, refused.attempt, refused.sent_at) == ("pending", 0, None)


def test_boots_do_not_hold_up_stops_and_destroys(product):
    claim(put(product, Kind.PROVISION, 4))
    ends = put(product, Kind.DESTROY, 2) + put(product, Kind.STOP, 2)
    assert claim(ends) == ends[:3]


def test_lifecycle_does_not_hold_up_wakes(product):
    claim(put(product, Kind.PROVISION, 4))
    assert claim(put(product, Kind.WAKE, queue="wake")) != []


def test_restarts_count_with_the_other_boots_of_their_product(product):
    """They compete for the same places: with a cap for each queue, one product would have all of them."""
    assert len(claim(put(product, Kind.PROVISION, 2) + put(product, Kind.RESTART, 2, queue="background"))) == 3
    other = put(make_product("other"), Kind.PROVISION)
    assert (queues.dispatch(), claim(other)) == (1, other)


def test_one_product_leaves_boots_to_the_wakes_of_another(product, settings):
    settings.ENV = settings.ENV.model_copy(update={"max_boots": 8, "product_max_operations": 5})
    boots, wakes = put(product, Kind.PROVISION, 6), put(product, Kind.WAKE, 3, queue="wake")
    assert claim(boots + wakes) == boots[:5] + wakes[:2]  # of 8, less an eighth
    other = put(make_product("other"), Kind.PROVISION)
    assert queues.dispatch() == 1
    assert Operation.objects.get(sent_at__isnull=False) == other[0]
    assert claim(put(make_product("third"), Kind.WAKE, queue="wake")) != []
    assert claim(other) == []  # the wake has the last boot


def test_boots_of_all_products_are_limited_and_some_are_for_wakes(product):
    boots = [operation for n in range(3) for operation in put(make_product(f"p{n}"), Kind.PROVISION, 2)]
    assert len(claim(boots)) == 4  # of 6, less 2 for wakes
    assert claim(put(product, Kind.RESTART, queue="background")) == []
    assert claim(put(product, Kind.STOP)) != []
    assert len(claim(put(product, Kind.WAKE, 3, queue="wake"))) == 2


def test_wakes_leave_no_more_boots_than_there_are(product):
    for n in range(3):
        claim(put(make_product(f"p{n}"), Kind.WAKE, 2, queue="wake"))
    assert claim(put(product, Kind.PROVISION)) == claim(put(product, Kind.WAKE, queue="wake")) == []


def test_caps_hold_when_everything_is_claimed_at_once(product):
    waiting = put(product, Kind.PROVISION, 10) + put(make_product("other"), Kind.PROVISION, 10)
    renewal = in_parallel(lambda operation: operations.claim(operation.pk), waiting)
    claimed = [operation for operation, lease in zip(waiting, renewal, strict=True) if isinstance(lease, operations.Lease)]
    counts = Counter(operation.engine.product_id for operation in claimed)
    assert sum(counts.values()) == 4
    assert max(counts.values()) <= 3


def test_lease_that_ran_out_takes_no_place(product):
    waiting = put(product, Kind.PROVISION, 4)
    claim(waiting)
    Operation.objects.filter(pk=waiting[0].pk).update(lease_until=Now() - timedelta(seconds=1))
    assert claim(waiting[3:]) == waiting[3:]


# -- shares of the queues, where one worker has the threads of all -------------------------------------------------------------

SHARES = {"wake_concurrency": 2, "ops_concurrency": 5, "background_concurrency": 2}


@pytest.fixture
def shares(db, settings):
    """Of `small`: nine operations in flight."""
    settings.ENV = settings.ENV.model_copy(update={**SHARES, "processes": "small"})


def put_ends(count, queue="lifecycle", slug="ends"):
    """Stops, each of a product of its own, so that no product's cap holds them."""
    return [put(make_product(f"{slug}-{number}"), Kind.STOP, queue=queue)[0] for number in range(count)]


def test_claim_is_refused_beyond_the_share_of_its_queue(shares, product):
    for queue, share in (("lifecycle", 5), ("background", 2)):
        waiting = put_ends(share + 1, queue, slug=queue)
        assert claim(waiting) == waiting[:share]
    assert len(claim(put(product, Kind.WAKE, 3, queue="wake"))) == 2


def test_share_of_full_is_what_its_processes_take(shares, settings):
    settings.ENV = settings.ENV.model_copy(update={"processes": "full"})
    waiting = put_ends(6)
    assert claim(waiting) == waiting


def test_what_nobody_waits_for_holds_up_no_caller(shares, product):
    """As after a restart of the host: many engines to start, and sleeps of idle ones."""
    for number in range(4):
        claim(put(make_product(f"many-{number}"), Kind.RESTART, queue="background"))
    claim(put_ends(4, "background"))
    assert len(claim(put(product, Kind.PROVISION, 2))) == 2
    assert len(claim(put(product, Kind.DESTROY, 2))) == 2


def test_operations_in_flight_are_never_more_than_all_shares(shares):
    kinds = ((Kind.WAKE, "wake"), (Kind.PROVISION, "lifecycle"), (Kind.STOP, "lifecycle"), (Kind.SLEEP, "background"))
    waiting = [
        operation
        for number in range(4)
        for kind, queue in kinds
        for operation in put(make_product(f"{kind}-{number}"), kind, 3, queue=queue)
    ]
    renewal = in_parallel(lambda operation: operations.claim(operation.pk), waiting)
    claimed = [operation for operation, lease in zip(waiting, renewal, strict=True) if isinstance(lease, operations.Lease)]
    assert Counter(operation.queue for operation in claimed) == {"wake": 2, "lifecycle": 5, "background": 2}


def sent():
    """How many were sent, by kind."""
    return Counter(Operation.objects.filter(sent_at__isnull=False).values_list("kind", flat=True))


def test_dispatch_sends_no_more_than_the_share_has_room_for(shares):
    waiting = put_ends(8)
    claim(waiting[:2])
    assert queues.dispatch() == 3
    assert claim(waiting[2:5]) == waiting[2:5]
    assert queues.dispatch() == 0


def test_boots_that_wait_for_room_keep_no_end_behind_them(shares):
    """Eight boots came first: four have room, of which the share leaves one place to an end."""
    for number in range(8):
        put(make_product(f"boots-{number}"), Kind.PROVISION)
    put_ends(3)
    assert queues.dispatch() == 5
    assert sent() == {Kind.PROVISION: 4, Kind.STOP: 1}


def test_place_that_wakes_alone_may_have_is_sent_to_nobody_else(shares, product):
    boots = [operation for number in range(8) for operation in put(make_product(f"boots-{number}"), Kind.PROVISION)]
    assert len(claim(boots[:5])) == 4
    wake = put(product, Kind.WAKE, queue="wake")
    end = put_ends(1)
    assert queues.dispatch() == 2
    assert sent() == {Kind.WAKE: 1, Kind.STOP: 1}
    assert claim([*wake, *end]) == [*wake, *end]


# -- turns -------------------------------------------------------------------------------------------------------------------


def test_end_of_an_operation_sends_the_next_one(product):
    waiting = put(product, Kind.STOP, 6)
    assert queues.dispatch() == 3  # and no more than have room
    lease, *_ = [operations.claim(operation.pk) for operation in waiting]
    assert messages() == 3
    assert lifecycle.settle(lease, waiting[0], outcomes.succeeded(waiting[0], waiting[0].engine, 1))
    assert messages() == 4
    assert Operation.objects.get(pk=waiting[3].pk).sent_at is not None
    assert Operation.objects.filter(sent_at=None).count() == 2


@pytest.mark.parametrize("end", ["given back", "superseded"])
def test_place_that_is_given_up_goes_to_the_next(product, end):
    first, *_ = waiting = put(product, Kind.STOP, 4)
    lease, *_ = [operations.claim(operation.pk) for operation in waiting]
    assert messages() == 0
    if end == "given back":
        operations.release(lease, delay_s=60)
    else:
        assert operations.supersede(first)
    assert messages() == 1


def test_turns_go_round_the_products(product):
    waiting = put(product, Kind.PROVISION, 20)
    late = put(make_product("late"), Kind.PROVISION, 2)
    assert [queues.position(operation) for operation in (*waiting[:3], *late)] == [1, 3, 5, 2, 4]
    claim(waiting[:2])
    assert [queues.position(operation) for operation in (*waiting[:4], *late)] == [None, None, 3, 4, 1, 2]


def test_dispatch_sends_the_small_product_before_the_rest_of_the_large_one(product):
    put(product, Kind.PROVISION, 20)
    late = put(make_product("late"), Kind.PROVISION, 1)
    queues.dispatch()
    assert Operation.objects.get(pk=late[0].pk).sent_at is not None
    assert Operation.objects.filter(sent_at__isnull=False).count() == 4


def test_position_is_in_the_answer_until_a_worker_has_it(product, api):
    first, second = put(product, Kind.STOP, 2)
    for operation, expected in ((first, 1), (second, 2)):
        shown = api.call("GET", f"/operations/{operation.pk}").json()
        assert (shown["queue"], shown["queue_position"]) == ("lifecycle", expected)
    claim([first])
    assert api.call("GET", f"/operations/{first.pk}").json()["queue_position"] is None
    assert api.call("GET", f"/operations/{second.pk}").json()["queue_position"] == 1
    Operation.objects.update(state=OperationState.SUPERSEDED, finished_at=Now())
    assert api.call("GET", f"/operations/{second.pk}").json()["queue_position"] is None


# -- the watch over a worker that is deaf ------------------------------------------------------------------------------------


def test_worker_is_deaf_only_to_what_it_was_sent(product):
    waiting = put(product, Kind.STOP, 4)
    queues.dispatch()
    assert not renewal._work_is_due(["lifecycle"])  # not for long
    Operation.objects.update(due_at=Now() - timedelta(minutes=1))
    assert renewal._work_is_due(["lifecycle"])
    assert not renewal._work_is_due(["wake"])
    claim(waiting)
    assert not renewal._work_is_due(["lifecycle"])  # one waits, for its turn
    Operation.objects.filter(pk=waiting[0].pk).update(lease_until=None, state="succeeded", finished_at=Now())
    queues.dispatch()
    assert not renewal._work_is_due(["lifecycle"])  # its turn has just come
