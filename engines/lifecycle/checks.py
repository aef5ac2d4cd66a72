"""Finds and locks engines, and checks them against the table of transitions."""

from uuid import UUID

from django.db.models import Q

from engines import identifiers, operations
from engines.errors import EngineAlreadyRunning, EngineNotFound, EngineNotRunning, OperationInProgress
from engines.models import Engine, Kind, Status
from engines.transitions import TRANSITIONS
from policy.models import Product


def find(product: Product, user_id: str) -> Engine:
    """The product's living engine for the user. Raises InvalidUserId, EngineNotFound."""
    engine = Engine.objects.living().filter(product=product, user_id=identifiers.check_user_id(user_id)).first()
    if engine is None:
        raise EngineNotFound("The product has no engine for this user.")
    return engine


def lock(engine_id: UUID) -> Engine:
    """The present row of the engine, locked until the transaction ends. Raises EngineNotFound once the engine is destroyed."""
    engine = Engine.objects.living().locked().filter(pk=engine_id).first()
    if engine is None:
        raise EngineNotFound("The engine is destroyed.")
    return engine


def lock_idle(engine_id: UUID, *either: Q, skip_locked: bool = False, **state: object) -> Engine | None:
    """The engine, locked, if it matches `either` and `state` (lookups of its fields), and no operation is open; else None."""
    engine = Engine.objects.locked(skip_locked=skip_locked).filter(*either, pk=engine_id, **state).first()
    return engine if engine is not None and operations.find_open(engine) is None else None


def check_can(engine: Engine, kind: Kind) -> None:
    """Raise EngineAlreadyRunning, EngineNotRunning or OperationInProgress when the engine's state forbids `kind`."""
    if engine.status in TRANSITIONS[kind].before:
        return
    if (current := operations.find_open(engine)) is not None:
        raise OperationInProgress(current.kind, current.pk)
    if kind in (Kind.START, Kind.WAKE) and engine.status == Status.RUNNING:
        raise EngineAlreadyRunning("The engine is running already.")
    raise EngineNotRunning(f"The engine is {engine.status}; {kind.label.lower()} needs {_either(TRANSITIONS[kind].before)}.")


def can(engine: Engine, kind: Kind) -> bool:
    """Whether `kind` may be requested in the engine's state. A destroy may always be requested while the engine lives."""
    if kind == Kind.DESTROY:
        return engine.destroyed_at is None
    return engine.status in TRANSITIONS[kind].before


def _either(statuses: frozenset[Status]) -> str:
    return " or ".join(sorted(statuses))


def makes_serve(kind: Kind, engine: Engine) -> bool:
    """Whether `kind` brings up an engine that does not run."""
    return kind in (Kind.START, Kind.WAKE) or (kind == Kind.RESTART and engine.status == Status.FAILED)
