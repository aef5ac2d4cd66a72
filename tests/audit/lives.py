"""Engines that went through their verbs, without any worker or process: what a worker would commit is committed at once."""

from django.db.models.functions import Now

from audit import actors
from audit.actors import SYSTEM
from engines import lifecycle, operations
from engines.lifecycle import outcomes
from engines.models import Engine, Status

STAFF = actors.staff("ada")
ERROR = ("engine_exited", "It ended.")


def ending(engine, error=None):
    """Claim the engine's open operation; returns the call that commits how it ended."""
    operation = operations.find_open(engine)
    lease = operations.claim(operation.pk)
    if error:
        outcome = outcomes.failed(operation, lease.attempt, error)
    else:
        outcome = outcomes.succeeded(operation, fresh(engine), lease.attempt)
    return lambda: lifecycle.settle(lease, operation, outcome)


def do(verb, engine, error=None):
    """Ask for a verb and let it end; returns the operation."""
    operation = verb(engine, by=STAFF)
    assert ending(engine, error)()
    operation.refresh_from_db()
    return operation


def put(product, status=Status.RUNNING, user_id="alice"):
    """An engine in that state."""
    engine = lifecycle.provision(product, user_id, by=STAFF).engine
    assert ending(engine)()
    way = {Status.STOPPED: lifecycle.stop, Status.SLEEPING: lifecycle.sleep}
    if status in way:
        do(way[status], engine)
    if status == Status.FAILED:
        why = {"cause": "probes", "result": "timeout", "failures": 3}
        assert lifecycle.mark_failed(engine.pk, fresh(engine).seq, by=SYSTEM, why=why, may_run=True)
        Engine.objects.filter(pk=engine.pk).update(next_restart_at=Now())
    return fresh(engine)


def fresh(engine):
    return Engine.objects.select_related("product").get(pk=engine.pk)
