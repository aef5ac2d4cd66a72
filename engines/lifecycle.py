"""The verbs, and every write of `Engine.status`.

A verb states intent in one transaction: it locks (product, host, engine, operation, in this order), checks, and opens an
operation. `settle` ends the operation that a worker carried out. Whatever moves an engine goes through `moves.move`,
which nobody else calls: one statement that changes the engine, adds one to `seq`, and writes the audit row.
"""

from collections.abc import Mapping
from typing import Any
from uuid import UUID, uuid4

from django.db import transaction

from audit import trail
from audit.actions import Action
from audit.actors import SYSTEM, Actor
from common.settings import settings
from engines import hosts, moves, names, operations
from engines.errors import (
    CapacityExhausted,
    EngineAlreadyExists,
    EngineAlreadyRunning,
    EngineNotFound,
    EngineNotRunning,
    OperationInProgress,
)
from engines.models import Engine, Kind, Operation, OperationState, Status
from engines.operations import Lease
from engines.outcomes import NO_PENDING, NO_RESTART, NOW, After, Outcome
from engines.transitions import TRANSITIONS
from policy import crypto, decisions, environments, overrides, products, refusals, rules
from policy.decisions import Decision
from policy.errors import Denied
from policy.models import Product

# -- finding and locking -----------------------------------------------------------------------------------------------


def find(product: Product, user_id: str) -> Engine:
    """The product's living engine for the user. Raises InvalidUserId, EngineNotFound."""
    engine = Engine.objects.filter(product=product, user_id=names.check_user_id(user_id), destroyed_at=None).first()
    if engine is None:
        raise EngineNotFound("The product has no engine for this user.")
    return engine


def lock(engine_id: UUID) -> Engine:
    """The engine as it is now, locked for this transaction. Raises EngineNotFound once it is destroyed."""
    engine = Engine.objects.select_for_update(no_key=True).filter(pk=engine_id, destroyed_at=None).first()
    if engine is None:
        raise EngineNotFound("The engine is destroyed.")
    return engine


def check_can(engine: Engine, kind: Kind) -> None:
    """Raise the refusal that fits when `kind` cannot be done in the engine's state."""
    if engine.status in TRANSITIONS[kind].before:
        return
    if (current := operations.find_open(engine)) is not None:
        raise OperationInProgress(current.kind, current.pk)
    if kind in (Kind.START, Kind.WAKE) and engine.status == Status.RUNNING:
        raise EngineAlreadyRunning("The engine is running already.")
    raise EngineNotRunning(f"The engine is {engine.status}; {kind.label.lower()} needs {_either(TRANSITIONS[kind].before)}.")


def can(engine: Engine, kind: Kind) -> bool:
    """Whether `kind` can be asked for in the engine's state. A destroy always can while the engine lives."""
    if kind == Kind.DESTROY:
        return engine.destroyed_at is None
    return engine.status in TRANSITIONS[kind].before


def _either(statuses: frozenset[Status]) -> str:
    return " or ".join(sorted(statuses))


# -- the verbs ---------------------------------------------------------------------------------------------------------


def provision(product: Product, user_id: str, *, by: Actor, engine_version: str = "", auto: bool = False) -> Operation:
    """Promise a new engine for the user; `auto` when an admit asks for it.

    A call for a user whose engine is being provisioned joins that. Raises InvalidUserId, ImageUnknown, EngineAlreadyExists,
    PortExhaustion, and with a row of the refusal ProductSuspended, ImageDenied, QuotaExceeded, CapacityExhausted.
    """
    user_id = names.check_user_id(user_id)
    image = names.check_image(engine_version)
    about = trail.Subject(product_id=product.pk, product_slug=product.slug, user_id=user_id)
    try:
        return _provision(product, user_id, image, by=by, auto=auto)
    except CapacityExhausted as full:  # its row is written here: with the transaction it would be rolled back
        _record_no_room(full, Kind.PROVISION, about, by=by)
        raise
    except Denied as refusal:
        action = Action.ADMIT_DENIED if auto else Action.PROVISION_DENIED
        refusals.record(action, about, by=by, metadata=refusal.metadata())
        raise


@transaction.atomic
def _provision(product: Product, user_id: str, asked: str, *, by: Actor, auto: bool) -> Operation:
    product = products.lock(product.pk)
    existing, image, decided = decide_provision(product, user_id, asked)
    decisions.check(decided)
    if existing is not None:
        return join_provision(existing, image)
    hosts.check_room(memory_mb(product), settings.ENV.engine_disk_mb)
    operation_id = uuid4()
    engine = _insert(product, user_id, image, operation_id, by=by, auto=auto)
    return operations.open(engine, Kind.PROVISION, by=by, operation_id=operation_id)


def decide_provision(product: Product, user_id: str, asked: str) -> tuple[Engine | None, str, list[Decision]]:
    """The user's living engine if there is one, the image that a new one would have, and what the policy says of that.

    It holds for as long as the product is locked.
    """
    living = Engine.objects.filter(product=product, destroyed_at=None)
    existing = living.filter(user_id=user_id).first()
    policy, default = overrides.in_force(product), settings.ENV.engine_image
    image = rules.choose_image(policy, asked, default)
    engines = living.count() if existing is None else None
    return existing, image, decisions.on_provision(policy, product.suspension_reason, image, default, engines)


def join_provision(engine: Engine, image: str) -> Operation:
    """The open provision of the engine, when it is for the same image. Raises EngineAlreadyExists."""
    current = operations.find_open(engine)
    if current is not None and current.kind == Kind.PROVISION and engine.engine_version == image:
        return current
    raise EngineAlreadyExists("The product has an engine for this user already.")


def _insert(product: Product, user_id: str, image: str, operation_id: UUID, *, by: Actor, auto: bool) -> Engine:
    """Insert the engine, with its key and port, and its `provision_requested` row."""
    host = hosts.local()
    key = crypto.make_key(crypto.ENGINE_PREFIX)
    engine_id = uuid4()
    params: dict[str, Any] = {
        "e_id": engine_id,
        "e_product": product.pk,
        "e_host": host.pk,
        "e_user": user_id,
        "e_image": image,
        "e_port": hosts.pick_port(host),
        "e_hash": crypto.hash_key(key),
        "e_cipher": crypto.encrypt(key),
        "e_memory": memory_mb(product),
        "e_disk": settings.ENV.engine_disk_mb,
        "e_env": environments.newest_version(product.pk),
        "e_from": None,
    }
    trail.record_move(
        "INSERT INTO engines_engine AS e (id, product_id, host_id, user_id, status, seq, engine_version, port, incarnation,"
        " incarnations, memory_mb, disk_mb, env_version, key_hash, key_ciphertext, pending_key_hash, pending_key_ciphertext,"
        " health_failures, restart_attempts)"
        " VALUES (%(e_id)s, %(e_product)s, %(e_host)s, %(e_user)s, 'provisioning', 1, %(e_image)s, %(e_port)s, 1, 1,"
        " %(e_memory)s, %(e_disk)s, %(e_env)s,"
        " %(e_hash)s, %(e_cipher)s, '', '', 0, 0)" + moves.SUBJECT,
        params,
        Action.PROVISION_REQUESTED,
        by=by,
        metadata={"image": image, "port": params["e_port"], "auto": auto},
        operation_id=operation_id,
    )
    return Engine.objects.get(pk=engine_id)


def start(engine: Engine, *, by: Actor, reason: str = "") -> Operation:
    """Ask for a start of a stopped, failed or sleeping engine.

    Raises EngineAlreadyRunning, OperationInProgress, and with a row of the refusal ProductSuspended, CapacityExhausted.
    """
    return _request(engine, Kind.START, by=by, reason=reason)


def stop(engine: Engine, *, by: Actor, reason: str = "") -> Operation:
    """Ask for a stop. Raises EngineNotRunning, OperationInProgress."""
    return _request(engine, Kind.STOP, by=by, reason=reason)


def sleep(engine: Engine, *, by: Actor, reason: str = "") -> Operation:
    """Ask for an idle engine to be stopped until it is woken. Raises EngineNotRunning, OperationInProgress."""
    return _request(engine, Kind.SLEEP, by=by, reason=reason)


def wake(engine: Engine, *, by: Actor, reason: str = "") -> Operation:
    """Ask for a sleeping engine to run again. Raises what `start` raises, and EngineNotRunning."""
    return _request(engine, Kind.WAKE, by=by, reason=reason)


def restart(engine: Engine, *, by: Actor, reason: str = "") -> Operation:
    """Ask for a stop and a start of a running or failed engine.

    Raises EngineNotRunning, OperationInProgress, and for a failed one what `start` raises.
    """
    return _request(engine, Kind.RESTART, by=by, reason=reason)


@transaction.atomic
def rotate_key(engine: Engine, *, by: Actor, reason: str = "") -> Operation:
    """Ask for a new key: made and kept as pending now, valid once a new incarnation that has it is healthy.

    Raises EngineNotRunning, OperationInProgress.
    """
    memory = _next_memory_mb(engine)
    engine = lock(engine.pk)
    check_can(engine, Kind.ROTATE_KEY)
    if (current := operations.find_open(engine)) is not None and current.kind == Kind.ROTATE_KEY:
        return current
    env_version = environments.newest_version(engine.product_id)
    params = {**params_of("requested", reason), "env_version": env_version, "memory_mb": memory}
    operation = operations.open(engine, Kind.ROTATE_KEY, by=by, incarnation=engine.incarnations + 1, params=params)
    key = crypto.make_key(crypto.ENGINE_PREFIX)
    Engine.objects.filter(pk=engine.pk).update(
        pending_key_hash=crypto.hash_key(key), pending_key_ciphertext=crypto.encrypt(key), incarnations=operation.incarnation
    )
    return operation


@transaction.atomic
def destroy(engine: Engine, *, by: Actor, reason: str = "") -> Operation:
    """Ask for the end of the engine, its volume and its key. Never waits: it supersedes an open operation.

    A second destroy joins the first. Raises EngineNotFound once the engine is gone.
    """
    engine = lock(engine.pk)
    current = operations.find_open(engine)
    if current is not None and current.kind == Kind.DESTROY:
        return current
    if current is not None and operations.supersede(current):
        record_superseded(engine, current, by=by, superseded_by="destroy")
    operation_id = uuid4()
    if engine.status != Status.DESTROYING:
        moves.move(
            engine,
            Status.DESTROYING,
            Action.DESTROY_REQUESTED,
            by=by,
            metadata=_reason(reason),
            extra=NO_RESTART,
            operation_id=operation_id,
        )
    return operations.open(engine, Kind.DESTROY, by=by, operation_id=operation_id, params=params_of("requested", reason))


@transaction.atomic
def cancel_sleep(engine: Engine, *, by: Actor) -> bool:
    """End an open sleep that no worker has claimed yet; False when one has, or there is none."""
    engine = lock(engine.pk)
    current = operations.find_open(engine)
    if current is None or current.kind != Kind.SLEEP or not operations.supersede(current, only_unclaimed=True):
        return False
    record_superseded(engine, current, by=by, superseded_by="admit")
    return True


@transaction.atomic
def reveal_key(engine: Engine, *, by: Actor) -> str:
    """The engine's key in plaintext, once the row that says who looked is written. Raises EngineNotFound, InvalidToken."""
    engine = lock(engine.pk)
    trail.record(Action.KEY_REVEAL, moves.subject(engine), by=by)
    return crypto.decrypt(engine.key_ciphertext)


def _request(engine: Engine, kind: Kind, *, by: Actor, reason: str) -> Operation:
    try:
        return _open(engine, kind, by=by, params=params_of("requested", reason))
    except CapacityExhausted as full:
        _record_no_room(full, kind, moves.subject(engine), by=by)
        raise
    except Denied as refusal:
        metadata = {"verb": str(kind), **refusal.metadata()}
        refusals.record(Action.START_DENIED, moves.subject(engine), by=by, metadata=metadata)
        raise


@transaction.atomic
def _open(engine: Engine, kind: Kind, *, by: Actor, params: Mapping[str, str]) -> Operation:
    if makes_serve(kind, engine) and by != SYSTEM:  # what we restart by ourselves had not been stopped
        decisions.check(decisions.on_serve(products.hold_suspension(engine.product_id)))
    full = None
    if makes_serve(kind, engine):
        try:
            hosts.check_room(engine.memory_mb, 0, but=engine.pk)
        except CapacityExhausted as error:
            full = error
    engine = lock(engine.pk)
    check_can(engine, kind)
    if full is not None and operations.find_open(engine) is None:
        raise full
    return operations.open(engine, kind, by=by, params=params)


def makes_serve(kind: Kind, engine: Engine) -> bool:
    """Whether it brings up an engine that does not run."""
    return kind in (Kind.START, Kind.WAKE) or (kind == Kind.RESTART and engine.status == Status.FAILED)


def _record_no_room(full: CapacityExhausted, kind: Kind, about: trail.Subject, *, by: Actor) -> None:
    refusals.record(Action.CAPACITY_EXHAUSTED, about, by=by, metadata={"verb": str(kind), **full.metadata()})


def memory_mb(product: Product) -> int:
    """Memory that a new engine of the product is counted with."""
    return int(rules.lowered(overrides.in_force(product), "memory_mb", settings.ENV.engine_memory_mb))


def _next_memory_mb(engine: Engine) -> int:
    """Memory of the engine's next incarnation: the policy's, or as much as this one has where the host has no room for more."""
    wanted = memory_mb(engine.product)
    if wanted > engine.memory_mb:
        try:
            hosts.check_room(wanted, 0, but=engine.pk)
        except CapacityExhausted:
            return engine.memory_mb
    return wanted


def params_of(cause: str = "requested", reason: str = "") -> dict[str, str]:
    """Parameters of an operation that says nothing but why."""
    return {"cause": cause, **_reason(reason)}


def _reason(reason: str) -> dict[str, str]:
    return {"reason": reason[:200]} if reason else {}


# -- the end of an operation -------------------------------------------------------------------------------------------


@transaction.atomic
def settle(lease: Lease, operation: Operation, outcome: Outcome) -> bool:
    """Commit an attempt's outcome: engine, operation and row together. False, and nothing written, when the lease is lost."""
    engine = Engine.objects.select_for_update(no_key=True).filter(pk=operation.engine_id, destroyed_at=None).first()
    state = OperationState.FAILED if outcome.error[0] else OperationState.SUCCEEDED
    if engine is None or not operations.close(lease, state, error=outcome.error):  # what destroyed it has ended the operation too
        return False
    moves.move(
        engine,
        outcome.status,
        outcome.action,
        by=Actor(operation.actor),
        metadata=outcome.metadata,
        extra=outcome.columns,
        operation_id=lease.operation_id,
        started=lease.started,
    )
    if outcome.also is not None:
        action, metadata = outcome.also
        engine.refresh_from_db(fields=["seq"])
        trail.record(action, moves.subject(engine), by=Actor(operation.actor), metadata=metadata, operation_id=operation.pk)
    return True


@transaction.atomic
def mark_failed(engine_id: UUID, seq: int, *, by: Actor, result: str, failures: int, retry_in_s: float | None) -> bool:
    """Probes failed past the threshold: `failed`, with a restart scheduled, or given up (None) when it had them all.

    False, and nothing written, when the engine has moved since it was probed.
    """
    engine = Engine.objects.select_for_update(no_key=True).filter(pk=engine_id, status=Status.RUNNING, seq=seq).first()
    if engine is None or operations.find_open(engine) is not None:
        return False
    columns: dict[str, Any] = {"health_failures": failures, "last_health_ok": False, "healthy_since": None, "may_run": True}
    metadata: dict[str, Any] = {"result": result, "failures": failures}
    if retry_in_s is None:
        columns["gave_up_at"] = NOW
    else:
        columns["next_restart_at"] = After(retry_in_s)
        metadata["restart_in_s"] = round(retry_in_s, 1)
    moves.move(engine, Status.FAILED, Action.HEALTH_FAILED, by=by, metadata=metadata, extra=columns)
    if retry_in_s is None:
        engine.refresh_from_db(fields=["seq"])
        trail.record(Action.AUTO_RESTART_GAVE_UP, moves.subject(engine), by=by, metadata={"restarts": engine.restart_attempts})
    return True


def record_superseded(engine: Engine, operation: Operation, *, by: Actor, superseded_by: str) -> None:
    """The row of an operation that was ended before it was done, and the end of a key that was pending for it."""
    Engine.objects.filter(pk=engine.pk).update(**NO_PENDING)
    metadata = {"kind": operation.kind, "superseded_by": superseded_by}
    trail.record(Action.OPERATION_SUPERSEDED, moves.subject(engine), by=by, metadata=metadata, operation_id=operation.pk)
