"""Opens, joins and finds operations: an operation is the intent to change an engine."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID, uuid4

from django.db import transaction
from django.db.models.functions import Now

from audit import trail
from audit.actors import Actor
from engines.errors import OperationInProgress, OperationNotFound
from engines.models import Engine, Kind, Operation, Queue, Trigger
from engines.operations import queues
from policy.models import Product

MAX_REASON = 200  # characters


def open(  # noqa: A001 (callers write `operations.open`)
    engine: Engine,
    kind: Kind,
    *,
    by: Actor,
    operation_id: UUID | None = None,
    incarnation: int | None = None,
    params: Mapping[str, Any] | None = None,
    queue: Queue | None = None,
) -> Operation:
    """Insert a pending operation, and send it when the transaction commits; `queue` is chosen by kind and trigger when None.

    The caller holds the engine's lock and has checked that no operation is open. The caller passes `operation_id` when audit rows
    written earlier name the operation.
    """
    operation = Operation(
        pk=operation_id or uuid4(),
        engine=engine,
        kind=kind,
        params=dict(params or {}),
        actor=by,
        incarnation=incarnation or engine.incarnation,
        sent_at=Now(),
        **trail.call_columns(by),
    )
    operation.queue = queue or queues.choose(kind, operation.trigger)
    operation.save(force_insert=True)
    transaction.on_commit(lambda: queues.send(operation.pk, operation.queue), robust=True)
    return operation


def join(engine: Engine, kind: Kind, params: Mapping[str, Any]) -> Operation | None:
    """The engine's open operation, or None. Raises OperationInProgress when its kind or its params differ."""
    current = find_open(engine)
    if current is None or (current.kind, current.params) == (kind, params):
        return current
    raise OperationInProgress(current.kind, current.pk)


def find_open(engine: Engine) -> Operation | None:
    """The engine's open operation, or None."""
    return Operation.objects.open().filter(engine=engine).first()


def get(product: Product, operation_id: UUID) -> Operation:
    """The product's operation with the given id. Raises OperationNotFound."""
    operation = Operation.objects.filter(pk=operation_id, engine__product=product).select_related("engine").first()
    if operation is None:
        raise OperationNotFound(f"The product has no operation with the id {operation_id}.")
    return operation


def params_of(trigger: Trigger = Trigger.REQUESTED, reason: str = "") -> dict[str, str]:
    """Parameters of an operation that hold only its trigger and, cut to MAX_REASON characters, a reason."""
    return {"cause": trigger.value, **({"reason": reason[:MAX_REASON]} if reason else {})}
