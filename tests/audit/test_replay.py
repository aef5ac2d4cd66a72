"""Whatever is asked of engines in whatever order, the log replayed gives the registry."""

import contextlib
import itertools

import pytest
from django.db import transaction
from django.db.models.functions import Now
from hypothesis import HealthCheck, given, settings, strategies as st

from audit import actors
from audit.actors import SYSTEM
from audit.models import AuditRow
from engines import lifecycle, operations
from engines.errors import EngineError
from engines.lifecycle import outcomes
from engines.models import Engine, Operation, Status, Trigger
from fleet import consistency, documents
from tests import examples

BY = actors.product("acme")
ERROR = ("engine_exited", "It ended.")
VERBS = (
    lifecycle.start, lifecycle.stop, lifecycle.sleep, lifecycle.wake, lifecycle.restart, lifecycle.rotate_key, lifecycle.destroy,
)  # fmt: skip
users = map("user {}".format, itertools.count())


@pytest.fixture(autouse=True)
def _room(request):
    """Workers that never come back hold their places for a lease's length; here they are many."""
    own = request.getfixturevalue("settings")
    own.ENV = own.ENV.model_copy(update={"product_max_operations": 1000, "max_boots": 1000})


class Life:
    """One user's engine; a step asks for a verb, or lets a worker, the health loop or a failing transaction come by."""

    def __init__(self, product):
        self.product = product
        self.engine = lifecycle.provision(product, next(users), by=BY).engine
        self.leases = []

    def ask(self, verb):
        with contextlib.suppress(EngineError):
            verb(self.engine, by=BY)

    def claim(self):
        """A worker takes the open operation, and may be gone before it ends: its lease is then another's."""
        operation = operations.find_open(self.engine)
        if operation is not None:
            Operation.objects.filter(pk=operation.pk).update(lease_until=None)
            self.leases.append(operations.claim(operation.pk))

    def settle(self, how):
        """The worker that claimed last, or one that was frozen since before, commits what came of it."""
        if not self.leases:
            return
        lease = self.leases.pop(-1 if how != "late" else 0)
        operation = Operation.objects.select_related("engine__product").get(pk=lease.operation_id)
        was_over = self._now().destroyed_at is not None
        settled = lifecycle.settle(lease, operation, self._outcome(how, operation, lease))
        assert not (settled and was_over)

    def _outcome(self, how, operation, lease):
        if how != "failed":
            return outcomes.succeeded(operation, operation.engine, lease.attempt)
        if operation.trigger == Trigger.HEALTH:
            return outcomes.restart_failed(operation, lease.attempt, ERROR, None if lease.attempt % 2 else 0.0)
        status = Status.RUNNING if operation.kind == "rotate_key" and lease.attempt % 2 else Status.FAILED
        return outcomes.failed(operation, lease.attempt, ERROR, status=status)

    def probe(self):
        seq = self._now().seq
        Engine.objects.filter(pk=self.engine.pk).update(restart_attempts=0 if seq % 3 else 99)
        lifecycle.mark_failed(self.engine.pk, seq, by=SYSTEM, why={"cause": "instance_ended"}, may_run=False)
        Engine.objects.filter(next_restart_at__isnull=False).update(next_restart_at=Now())

    def heal(self):
        lifecycle.auto_restart(self.engine.pk, by=SYSTEM)

    def wake_up(self):
        try:
            lifecycle.cancel_sleep(self.engine, by=BY)
        except EngineError:
            assert self._now().destroyed_at

    def roll_back(self, verb):
        with transaction.atomic():
            self.ask(verb)
            self.probe()
            transaction.set_rollback(True)

    def again(self):
        """The engine is gone and its user gets a new one."""
        if self._now().destroyed_at:
            self.engine = lifecycle.provision(self.product, self.engine.user_id, by=BY).engine
            self.leases = []

    def _now(self):
        return Engine.objects.get(pk=self.engine.pk)


verbs = st.sampled_from(VERBS)
work = st.tuples(st.just("claim")) | st.tuples(st.just("settle"), st.sampled_from(["succeeded", "succeeded", "failed", "late"]))
steps = st.one_of(
    st.tuples(st.just("ask"), verbs),
    work,
    work,
    st.tuples(st.sampled_from(["probe", "heal", "wake_up", "again"])),
    st.tuples(st.just("roll_back"), verbs),
)


@settings(
    max_examples=examples.number(60),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(steps, min_size=5, max_size=30))
def test_replay_gives_the_registry(product, sequence):
    life = Life(product)
    for name, *arguments in [("claim",), ("settle", "succeeded"), *sequence]:
        getattr(life, name)(*arguments)
    found = []
    consistency.check(found.append)
    assert found == []
    _check_moves(life.engine)


def _check_moves(engine):
    """The same without SQL, and every move is one that the state diagram shows."""
    engine = Engine.objects.get(pk=engine.pk)
    moves = AuditRow.objects.filter(engine_id=engine.pk, to_status__isnull=False).order_by("engine_seq")
    status = None
    for number, move in enumerate(moves, 1):
        assert (move.engine_seq, move.from_status) == (number, status)
        assert (move.from_status, move.to_status, move.action) in documents.moves()
        status = move.to_status
    assert (engine.seq, engine.status) == (len(moves), status)
