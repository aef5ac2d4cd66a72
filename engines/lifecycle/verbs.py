"""The verbs for an existing engine. Every verb states its intent in a single transaction and returns the operation.

A verb takes its locks in a fixed order (product, host, engine, operation), makes its plan, and opens an operation or joins an
open operation with an equal effect.
"""

import secrets
from collections.abc import Mapping
from typing import Any
from uuid import UUID, uuid4

from django.db import transaction

from audit import trail
from audit.actions import Action
from audit.actors import Actor
from engines import operations
from engines.backends.base import Ref
from engines.lifecycle import capacity, moves, plans, refused
from engines.lifecycle.checks import lock
from engines.lifecycle.outcomes import NO_RESTART
from engines.lifecycle.settle import record_superseded
from engines.models import Engine, Kind, Operation, Queue, Status
from engines.operations import params_of
from engines.transitions import STARTS
from policy import crypto, environments, products

TOKEN_BYTES = 6  # of an incarnation: a restored registry counts incarnations anew, and must not find another one's instance


def start(engine: Engine, *, by: Actor, reason: str = "") -> Operation:
    """Request a start of a stopped, failed or sleeping engine.

    Raises EngineAlreadyRunning, OperationInProgress, and with a row of the refusal ProductSuspended, CapacityExhausted.
    """
    return _request(engine, Kind.START, by=by, reason=reason)


def stop(engine: Engine, *, by: Actor, reason: str = "") -> Operation:
    """Request a stop. Raises EngineNotRunning, OperationInProgress."""
    return _request(engine, Kind.STOP, by=by, reason=reason)


def stop_in_background(engine: Engine, *, by: Actor, reason: str = "") -> Operation:
    """Ask for a stop that no caller waits for. Raises EngineNotRunning, OperationInProgress."""
    return _request(engine, Kind.STOP, by=by, reason=reason, queue=Queue.BACKGROUND)


def sleep(engine: Engine, *, by: Actor, reason: str = "") -> Operation:
    """Request the stop of an idle engine until a wake. Raises EngineNotRunning, OperationInProgress."""
    return _request(engine, Kind.SLEEP, by=by, reason=reason)


def wake(engine: Engine, *, by: Actor, reason: str = "") -> Operation:
    """Request that a sleeping engine runs again. Raises the refusals of `start`, and EngineNotRunning."""
    return _request(engine, Kind.WAKE, by=by, reason=reason)


def restart(engine: Engine, *, by: Actor, reason: str = "") -> Operation:
    """Request a stop and a start of a running or failed engine.

    Raises EngineNotRunning, OperationInProgress, and for a failed engine the refusals of `start`.
    """
    return _request(engine, Kind.RESTART, by=by, reason=reason)


@transaction.atomic
def rotate_key(engine: Engine, *, by: Actor, reason: str = "") -> Operation:
    """Request a new key. The key is made now and pending; it becomes valid once a new incarnation with the key is healthy.

    Raises EngineNotRunning, OperationInProgress.
    """
    memory_mb = capacity.next_memory_mb(engine)
    engine, params = lock(engine.pk), params_of(reason=reason)
    plan = plans.of_verb(engine, Kind.ROTATE_KEY, params, "").checked()
    if plan.joins is not None:
        return plan.joins
    incarnation = engine.incarnations + 1
    made_of = {
        "env_version": environments.newest_version(engine.product_id),
        "memory_mb": memory_mb,
        "mark": Ref(engine.pk, incarnation, secrets.token_hex(TOKEN_BYTES)).mark,
    }
    operation = operations.open(engine, Kind.ROTATE_KEY, by=by, incarnation=incarnation, params={**params, **made_of})
    key = crypto.make_key(crypto.ENGINE_PREFIX)
    Engine.objects.filter(pk=engine.pk).update(
        pending_key_hash=crypto.hash_key(key), pending_key_ciphertext=crypto.encrypt(key), incarnations=incarnation
    )
    return operation


@transaction.atomic
def destroy(engine: Engine, *, by: Actor, reason: str = "") -> Operation:
    """Request the end of the engine, its volume and its key. Never waits: a destroy supersedes an open operation.

    A destroy joins an open destroy. Raises EngineNotFound once the engine is gone.
    """
    engine, params = lock(engine.pk), params_of(reason=reason)
    plan = plans.of_verb(engine, Kind.DESTROY, params, "").checked()
    if plan.joins is not None:
        return plan.joins
    current = operations.find_open(engine)
    if current is not None and operations.supersede(current):
        record_superseded(engine, current, by=by, superseded_by="destroy")
    operation_id = uuid4()
    if engine.status != Status.DESTROYING:
        _enter_destroying(engine, params, by=by, operation_id=operation_id)
    return operations.open(engine, Kind.DESTROY, by=by, operation_id=operation_id, params=params)


def _enter_destroying(engine: Engine, params: Mapping[str, str], *, by: Actor, operation_id: UUID) -> None:
    moves.move(
        engine,
        Status.DESTROYING,
        Action.DESTROY_REQUESTED,
        by=by,
        metadata={"reason": params["reason"]} if "reason" in params else {},
        extra=NO_RESTART,
        operation_id=operation_id,
    )


@transaction.atomic
def cancel_sleep(engine: Engine, *, by: Actor) -> bool:
    """End an open sleep that no worker has claimed yet; False when a worker has claimed it, or no sleep is open."""
    engine = lock(engine.pk)
    current = operations.find_open(engine)
    if current is None or current.kind != Kind.SLEEP or not operations.supersede(current, only_unclaimed=True):
        return False
    record_superseded(engine, current, by=by, superseded_by="admit")
    return True


@transaction.atomic
def reveal_key(engine: Engine, *, by: Actor) -> str:
    """The engine's key in plaintext, after its `key_reveal` row is written. Raises EngineNotFound, InvalidToken."""
    engine = lock(engine.pk)
    trail.record(Action.KEY_REVEAL, moves.subject(engine), by=by)
    return crypto.decrypt(engine.key_ciphertext)


def _request(engine: Engine, kind: Kind, *, by: Actor, reason: str, queue: Queue | None = None) -> Operation:
    """Open or join the operation; a refusal gets its audit row."""
    with refused.recorded(kind, lambda: moves.subject(engine), by=by, denied=Action.START_DENIED):
        return _open(engine, kind, params_of(reason=reason), by=by, queue=queue)


@transaction.atomic
def _open(engine: Engine, kind: Kind, params: Mapping[str, Any], *, by: Actor, queue: Queue | None) -> Operation:
    suspension = ""
    if kind in STARTS:
        suspension = products.hold_suspension(engine.product_id)
        capacity.lock_host()
    engine = lock(engine.pk)
    plan = plans.of_verb(engine, kind, params, suspension).checked()
    return plan.joins or operations.open(engine, kind, by=by, params=params, queue=queue)
