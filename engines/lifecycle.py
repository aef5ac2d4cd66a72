"""The verbs, the table of transitions, and every write of `Engine.status`.

A verb states intent in one transaction: it locks (product, host, engine, operation, in this order), checks, and opens an operation.
`settle` ends the operation that a worker carried out. Whatever moves an engine goes through `_move`: one statement that changes
the engine, adds one to `seq`, and writes the audit row.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

from django.conf import settings
from django.db import connection, transaction

from audit import trail
from audit.actions import Action
from audit.actors import Actor
from engines import operations
from engines.errors import (
    EngineAlreadyExists,
    EngineAlreadyRunning,
    EngineNotFound,
    EngineNotRunning,
    ImageUnknown,
    InvalidUserId,
    OperationInProgress,
    PortExhaustion,
)
from engines.models import Engine, Host, Kind, Operation, OperationState, Status
from engines.operations import Lease
from policy import products, rules, secrets
from policy.errors import QuotaExceeded
from policy.models import Product


@dataclass(frozen=True)
class Transition:
    """What a kind of operation does to the state: `before` → `after`, or `failed` when it fails for good."""

    before: frozenset[Status]
    after: Status
    done: Action
    failed: Action


def _transition(before: tuple[Status, ...], after: Status, done: Action, failed: Action) -> Transition:
    return Transition(frozenset(before), after, done, failed)


TRANSITIONS: Mapping[Kind, Transition] = {
    Kind.PROVISION: _transition((Status.PROVISIONING,), Status.RUNNING, Action.PROVISION, Action.PROVISION_FAILED),
    Kind.START: _transition(
        (Status.STOPPED, Status.FAILED, Status.SLEEPING), Status.RUNNING, Action.START, Action.START_FAILED
    ),
    Kind.STOP: _transition((Status.RUNNING, Status.SLEEPING, Status.FAILED), Status.STOPPED, Action.STOP, Action.STOP_FAILED),
    Kind.SLEEP: _transition((Status.RUNNING,), Status.SLEEPING, Action.SLEEP, Action.SLEEP_FAILED),
    Kind.WAKE: _transition((Status.SLEEPING,), Status.RUNNING, Action.WAKE, Action.WAKE_FAILED),
    Kind.RESTART: _transition((Status.RUNNING, Status.FAILED), Status.RUNNING, Action.RESTART, Action.RESTART_FAILED),
    Kind.ROTATE_KEY: _transition((Status.RUNNING,), Status.RUNNING, Action.ROTATE_KEY, Action.ROTATE_KEY_FAILED),
    Kind.DESTROY: _transition((Status.DESTROYING,), Status.DESTROYED, Action.DESTROY, Action.DESTROY_FAILED),
}
"""Every operation's move. Three more have no operation: (none) → provisioning and any → destroying, when a provision or a destroy is
asked for, and running → failed, when probes fail."""

SUBJECT = (
    " RETURNING e.product_id, (SELECT slug FROM policy_product p WHERE p.id = e.product_id) AS product_slug,"
    " e.user_id, e.id AS engine_id, %(e_from)s::text AS from_status, e.status AS to_status, e.seq AS engine_seq"
)


# -- finding and locking -----------------------------------------------------------------------------------------------


def check_user_id(user_id: object) -> str:
    """The user id as it is stored. Raises InvalidUserId unless it is a string of 1 to 255 printable characters, not `.` or `..`."""
    if not isinstance(user_id, str) or not 1 <= len(user_id) <= 255 or not user_id.isprintable() or user_id in (".", ".."):
        raise InvalidUserId("user_id: must be a string of 1 to 255 printable characters, and not . or .. alone.")
    return user_id


def find(product: Product, user_id: str) -> Engine:
    """The product's living engine for the user. Raises InvalidUserId, EngineNotFound."""
    engine = Engine.objects.filter(product=product, user_id=check_user_id(user_id), destroyed_at=None).first()
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
    QuotaExceeded (with a `provision_denied` row, or `admit_denied`), PortExhaustion.
    """
    user_id = check_user_id(user_id)
    image = check_image(engine_version or settings.ENV.engine_image)
    outcome = _provision(product, user_id, image, by=by, auto=auto)
    if isinstance(outcome, QuotaExceeded):  # raised here, after the commit: inside, its row would be rolled back
        raise outcome
    return outcome


@transaction.atomic
def _provision(product: Product, user_id: str, image: str, *, by: Actor, auto: bool) -> Operation | QuotaExceeded:
    product = products.lock(product.pk)
    existing = Engine.objects.filter(product=product, user_id=user_id, destroyed_at=None).first()
    if existing is not None:
        return _join_provision(existing, image)
    try:
        rules.check_max_engines(product.policy, Engine.objects.filter(product=product, destroyed_at=None).count())
    except QuotaExceeded as refusal:
        subject = trail.Subject(product_id=product.pk, product_slug=product.slug, user_id=user_id)
        trail.record(Action.ADMIT_DENIED if auto else Action.PROVISION_DENIED, subject, by=by, metadata=refusal.metadata())
        return refusal
    operation_id = uuid4()
    engine = _insert(product, user_id, image, operation_id, by=by, auto=auto)
    return operations.open(engine, Kind.PROVISION, by=by, operation_id=operation_id)


def _join_provision(engine: Engine, image: str) -> Operation:
    """The open provision of the engine, when it is for the same image. Raises EngineAlreadyExists."""
    current = operations.find_open(engine)
    if current is not None and current.kind == Kind.PROVISION and engine.engine_version == image:
        return current
    raise EngineAlreadyExists("The product has an engine for this user already.")


def check_image(image: object) -> str:
    """The image's name. Raises ImageUnknown when it cannot be one."""
    if not isinstance(image, str) or not 1 <= len(image) <= 255 or not image.isprintable() or " " in image:
        raise ImageUnknown("engine_version: must be the name of an image, up to 255 characters without spaces.")
    return image


def _insert(product: Product, user_id: str, image: str, operation_id: UUID, *, by: Actor, auto: bool) -> Engine:
    """Insert the engine, with its key and port, and its `provision_requested` row."""
    host = local_host()
    key = secrets.make_key(secrets.ENGINE_PREFIX)
    engine_id = uuid4()
    params: dict[str, Any] = {
        "e_id": engine_id,
        "e_product": product.pk,
        "e_host": host.pk,
        "e_user": user_id,
        "e_image": image,
        "e_port": pick_port(host),
        "e_hash": secrets.hash_key(key),
        "e_cipher": secrets.encrypt(key),
        "e_from": None,
    }
    trail.record_move(
        "INSERT INTO engines_engine AS e (id, product_id, host_id, user_id, status, seq, engine_version, port, incarnation, incarnations,"
        " key_hash, key_ciphertext, pending_key_hash, pending_key_ciphertext, health_failures, restart_attempts)"
        " VALUES (%(e_id)s, %(e_product)s, %(e_host)s, %(e_user)s, 'provisioning', 1, %(e_image)s, %(e_port)s, 1, 1,"
        " %(e_hash)s, %(e_cipher)s, '', '', 0, 0)" + SUBJECT,
        params,
        Action.PROVISION_REQUESTED,
        by=by,
        metadata={"image": image, "port": params["e_port"], "auto": auto},
        operation_id=operation_id,
    )
    return Engine.objects.get(pk=engine_id)


def start(engine: Engine, *, by: Actor, reason: str = "") -> Operation:
    """Ask for a start of a stopped, failed or sleeping engine. Raises EngineAlreadyRunning, OperationInProgress."""
    return _request(engine, Kind.START, by=by, reason=reason)


def stop(engine: Engine, *, by: Actor, reason: str = "") -> Operation:
    """Ask for a stop. Raises EngineNotRunning, OperationInProgress."""
    return _request(engine, Kind.STOP, by=by, reason=reason)


def sleep(engine: Engine, *, by: Actor, reason: str = "") -> Operation:
    """Ask for an idle engine to be stopped until it is woken. Raises EngineNotRunning, OperationInProgress."""
    return _request(engine, Kind.SLEEP, by=by, reason=reason)


def wake(engine: Engine, *, by: Actor, reason: str = "") -> Operation:
    """Ask for a sleeping engine to run again. Raises EngineAlreadyRunning, EngineNotRunning, OperationInProgress."""
    return _request(engine, Kind.WAKE, by=by, reason=reason)


def restart(engine: Engine, *, by: Actor, cause: str = "requested", reason: str = "") -> Operation:
    """Ask for a stop and a start of a running or failed engine. Raises EngineNotRunning, OperationInProgress."""
    return _request(engine, Kind.RESTART, by=by, reason=reason, cause=cause)


@transaction.atomic
def rotate_key(engine: Engine, *, by: Actor, reason: str = "") -> Operation:
    """Ask for a new key: made and kept as pending now, valid once a new incarnation that has it is healthy.

    Raises EngineNotRunning, OperationInProgress.
    """
    engine = lock(engine.pk)
    check_can(engine, Kind.ROTATE_KEY)
    if (current := operations.find_open(engine)) is not None and current.kind == Kind.ROTATE_KEY:
        return current
    operation = operations.open(
        engine, Kind.ROTATE_KEY, by=by, incarnation=engine.incarnations + 1, params=_params("requested", reason)
    )
    key = secrets.make_key(secrets.ENGINE_PREFIX)
    Engine.objects.filter(pk=engine.pk).update(
        pending_key_hash=secrets.hash_key(key), pending_key_ciphertext=secrets.encrypt(key), incarnations=operation.incarnation
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
        _move(
            engine, Status.DESTROYING, Action.DESTROY_REQUESTED, by=by, metadata=_reason(reason), extra=_NO_RESTART, operation_id=operation_id
        )
    return operations.open(engine, Kind.DESTROY, by=by, operation_id=operation_id, params=_params("requested", reason))


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
    """The engine's key in plaintext, for staff, once the row that says who looked is written. Raises EngineNotFound, InvalidToken."""
    engine = lock(engine.pk)
    trail.record(Action.KEY_REVEAL, subject(engine), by=by)
    return secrets.decrypt(engine.key_ciphertext)


@transaction.atomic
def auto_restart(engine_id: UUID, *, by: Actor) -> Operation | None:
    """Start the restart that was scheduled for a failed engine; None when it is not due any more."""
    engine = Engine.objects.select_for_update(no_key=True, skip_locked=True).filter(pk=engine_id, status=Status.FAILED).first()
    if engine is None or engine.next_restart_at is None or operations.find_open(engine) is not None:
        return None
    number = engine.restart_attempts + 1
    Engine.objects.filter(pk=engine.pk).update(next_restart_at=None, restart_attempts=number)
    operation = operations.open(engine, Kind.RESTART, by=by, params={"cause": "health", "restart": number})
    trail.record(Action.AUTO_RESTART_START, subject(engine), by=by, metadata={"restart": number}, operation_id=operation.pk)
    return operation


@transaction.atomic
def stop_again(engine_id: UUID, *, by: Actor) -> Operation | None:
    """Stop the instance of an engine that is stopped or sleeping by the registry, yet runs; None when that is not so any more."""
    engine = Engine.objects.select_for_update(no_key=True).filter(pk=engine_id, status__in=[Status.STOPPED, Status.SLEEPING]).first()
    if engine is None or operations.find_open(engine) is not None:
        return None
    kind = Kind.STOP if engine.status == Status.STOPPED else Kind.SLEEP
    return operations.open(engine, kind, by=by, params=_params("reconciled", ""))


@transaction.atomic
def _request(engine: Engine, kind: Kind, *, by: Actor, reason: str, cause: str = "requested") -> Operation:
    engine = lock(engine.pk)
    check_can(engine, kind)
    return operations.open(engine, kind, by=by, params=_params(cause, reason))


def _params(cause: str, reason: str) -> dict[str, str]:
    return {"cause": cause, **_reason(reason)}


def _reason(reason: str) -> dict[str, str]:
    return {"reason": reason[:200]} if reason else {}


@dataclass(frozen=True)
class After:
    """A column's value: that many seconds from now, by the database's clock."""

    seconds: float


NOW = After(0)

# -- the end of an operation -------------------------------------------------------------------------------------------

_NO_RESTART: Mapping[str, Any] = {"next_restart_at": None}
_CLEARED: Mapping[str, Any] = {**_NO_RESTART, "health_failures": 0, "last_health_ok": None, "gave_up_at": None, "healthy_since": None}
_NO_PENDING: Mapping[str, Any] = {"pending_key_hash": "", "pending_key_ciphertext": ""}


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended: where it leaves the engine, the row to write, further columns of the engine, and the error if any."""

    status: Status
    action: Action
    metadata: Mapping[str, Any] = field(default_factory=dict)
    columns: Mapping[str, Any] = field(default_factory=dict)
    error: tuple[str, str] = ("", "")
    also: tuple[Action, Mapping[str, Any]] | None = None  # one more row, of something that moves nothing


@transaction.atomic
def settle(lease: Lease, operation: Operation, outcome: Outcome) -> bool:
    """Commit an attempt's outcome: engine, operation and audit row together. False, and nothing written, when the lease is lost."""
    engine = lock(operation.engine_id)
    state = OperationState.FAILED if outcome.error[0] else OperationState.SUCCEEDED
    if not operations.close(lease, state, error=outcome.error):
        return False
    _move(
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
        trail.record(action, subject(engine), by=Actor(operation.actor), metadata=metadata, operation_id=operation.pk)
    return True


def succeeded(operation: Operation, engine: Engine, metadata: Mapping[str, Any]) -> Outcome:
    """The outcome of an operation that did what it was to do."""
    transition = TRANSITIONS[Kind(operation.kind)]
    action = Action.AUTO_RESTART_SUCCESS if is_automatic(operation) else transition.done
    columns = dict(_CLEARED)
    if transition.after == Status.RUNNING:
        columns |= {"next_probe_at": NOW, "provisioned_at": engine.provisioned_at or NOW}
    if not is_automatic(operation):
        columns |= {"restart_attempts": 0}
    if operation.kind == Kind.ROTATE_KEY:
        columns |= {"key_hash": engine.pending_key_hash, "key_ciphertext": engine.pending_key_ciphertext, **_NO_PENDING}
        columns |= {"incarnation": operation.incarnation}
    if operation.kind == Kind.DESTROY:
        columns |= {"destroyed_at": NOW, "key_hash": "", "key_ciphertext": "", **_NO_PENDING}
    return Outcome(transition.after, action, {**metadata, **told(operation)}, columns)


def failed(operation: Operation, attempt: int, error: tuple[str, str], *, status: Status = Status.FAILED) -> Outcome:
    """The outcome of an operation that failed for good; `error` is a code and a sentence."""
    metadata = {"error": error[0], "attempt": attempt, **told(operation)}
    return Outcome(status, TRANSITIONS[Kind(operation.kind)].failed, metadata, {**_NO_RESTART, **_NO_PENDING}, error)


def restart_failed(operation: Operation, attempt: int, error: tuple[str, str], retry_in_s: float | None) -> Outcome:
    """The outcome of an automatic restart that failed: the next one is scheduled, or with None the fleet gives up."""
    number = int(operation.params["restart"])
    metadata: dict[str, Any] = {"restart": number, "error": error[0], "attempt": attempt}
    if retry_in_s is None:
        gave_up = (Action.AUTO_RESTART_GAVE_UP, {"restarts": number})
        return Outcome(Status.FAILED, Action.AUTO_RESTART_FAILED, metadata, {**_NO_RESTART, "gave_up_at": NOW}, error, gave_up)
    metadata["restart_in_s"] = round(retry_in_s, 1)
    return Outcome(Status.FAILED, Action.AUTO_RESTART_FAILED, metadata, {"next_restart_at": After(retry_in_s)}, error)


@transaction.atomic
def mark_failed(engine_id: UUID, seq: int, *, by: Actor, result: str, failures: int, retry_in_s: float | None) -> bool:
    """Probes failed past the threshold: `failed`, with a restart scheduled, or given up (None) when it had them all.

    False, and nothing written, when the engine has moved since it was probed.
    """
    engine = Engine.objects.select_for_update(no_key=True).filter(pk=engine_id, status=Status.RUNNING, seq=seq).first()
    if engine is None or operations.find_open(engine) is not None:
        return False
    columns: dict[str, Any] = {"health_failures": failures, "last_health_ok": False, "healthy_since": None}
    metadata: dict[str, Any] = {"result": result, "failures": failures}
    if retry_in_s is None:
        columns["gave_up_at"] = NOW
    else:
        columns["next_restart_at"] = After(retry_in_s)
        metadata["restart_in_s"] = round(retry_in_s, 1)
    _move(engine, Status.FAILED, Action.HEALTH_FAILED, by=by, metadata=metadata, extra=columns)
    if retry_in_s is None:
        engine.refresh_from_db(fields=["seq"])
        trail.record(Action.AUTO_RESTART_GAVE_UP, subject(engine), by=by, metadata={"restarts": engine.restart_attempts})
    return True


def is_automatic(operation: Operation) -> bool:
    """A restart that the health loop asked for."""
    return bool(operation.kind == Kind.RESTART and operation.params.get("cause") == "health")


def told(operation: Operation) -> dict[str, Any]:
    """The parameters of an operation that its audit rows repeat."""
    if operation.kind == Kind.PROVISION:
        return {}
    keys = ("restart",) if is_automatic(operation) else ("cause", "reason")
    return {key: operation.params[key] for key in keys if key in operation.params}


# -- moves -------------------------------------------------------------------------------------------------------------

_COLUMNS = frozenset(
    "next_restart_at health_failures last_health_ok gave_up_at healthy_since pending_key_hash pending_key_ciphertext next_probe_at"
    " provisioned_at restart_attempts key_hash key_ciphertext incarnation destroyed_at last_health_at".split()
)


def _move(
    engine: Engine,
    to: Status,
    action: Action,
    *,
    by: Actor,
    metadata: Mapping[str, Any],
    extra: Mapping[str, Any],
    operation_id: UUID | None = None,
    started: datetime | None = None,
) -> None:
    """Change the state of a locked engine, with its row, in one statement."""
    assert extra.keys() <= _COLUMNS, extra.keys() - _COLUMNS  # noqa: S101
    sets = [
        f"{name} = now() + make_interval(secs => %(e_{name})s)" if isinstance(value, After) else f"{name} = %(e_{name})s"
        for name, value in extra.items()
    ]
    params = {f"e_{name}": value.seconds if isinstance(value, After) else value for name, value in extra.items()}
    params |= {"e_id": engine.pk, "e_from": engine.status, "e_to": to, "e_seq": engine.seq}
    row = trail.record_move(
        f"UPDATE engines_engine AS e SET {', '.join(['status = %(e_to)s', 'seq = seq + 1', *sets])}"
        " WHERE id = %(e_id)s AND status = %(e_from)s AND seq = %(e_seq)s" + SUBJECT,
        params,
        action,
        by=by,
        metadata=metadata,
        operation_id=operation_id,
        started=started,
    )
    if row is None:
        raise trail.NotRecorded(f"{action} of engine {engine.pk}: it moved under its lock")


def subject(engine: Engine) -> trail.Subject:
    """What a row about the engine says of it when the engine does not move."""
    return trail.Subject(
        product_id=engine.product_id,
        product_slug=engine.product.slug,
        user_id=engine.user_id,
        engine_id=engine.pk,
        engine_seq=engine.seq,
    )


def record_superseded(engine: Engine, operation: Operation, *, by: Actor, superseded_by: str) -> None:
    """The row of an operation that was ended before it was done, and the end of a key that was pending for it."""
    Engine.objects.filter(pk=engine.pk).update(**_NO_PENDING)
    metadata = {"kind": operation.kind, "superseded_by": superseded_by}
    trail.record(Action.OPERATION_SUPERSEDED, subject(engine), by=by, metadata=metadata, operation_id=operation.pk)


# -- hosts and ports ---------------------------------------------------------------------------------------------------


def local_host() -> Host:
    """The one host there is for now, locked for this transaction, so that ports are given out one at a time."""
    host = Host.objects.select_for_update(no_key=True).filter(name="local").first()
    if host is None:
        Host.objects.bulk_create([Host(name="local")], ignore_conflicts=True)
        host = Host.objects.select_for_update(no_key=True).get(name="local")
    return host


def pick_port(host: Host) -> int:
    """A free port of the locked host, picked at random: a port just freed should not go to another user. Raises PortExhaustion."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT port FROM generate_series(%s::int, %s::int) port WHERE NOT EXISTS (SELECT 1 FROM engines_engine e"
            " WHERE e.host_id = %s AND e.port = port.port AND e.destroyed_at IS NULL) ORDER BY random() LIMIT 1",
            [settings.ENV.port_min, settings.ENV.port_max, host.pk],
        )
        row = cursor.fetchone()
    if row is None:
        raise PortExhaustion(f"No port from {settings.ENV.port_min} to {settings.ENV.port_max} is free; destroy an engine or widen the range.")
    return int(row[0])


@transaction.atomic
def change_port(lease: Lease, engine: Engine) -> int:
    """Give the engine another port, because something else has taken its own. Raises PortExhaustion, LeaseLost."""
    host = local_host()
    operations.check(lease)
    port = pick_port(host)
    Engine.objects.filter(pk=engine.pk).update(port=port)
    return port
