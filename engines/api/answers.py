"""The bodies that endpoints answer with: each is a TypedDict beside the function that renders it."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field
from typing_extensions import TypedDict

from common.answers import Count, NonEmpty, Number, OneOf, Time, Url, Uuid, choice
from common.times import iso
from engines import admission, models, operations
from engines.addresses import url
from engines.errors import EngineNotFound
from engines.models import Kind, OperationState, Queue, Status
from policy import crypto
from policy.models import Product

LIVING = [status.value for status in Status if status != Status.DESTROYED]
ADMIT_REASONS = ["engine_not_found", *admission.REASONS.values(), "engine_busy"]

MAX_LINES = 1000  # of a log

EngineStatus = Annotated[str, choice(LIVING)]
EngineKey = Annotated[NonEmpty, Field(pattern="^sk-sept-")]


# -- engines -----------------------------------------------------------------------------------------------------------


class Engine(TypedDict):
    """An engine, without its key."""

    engine_id: Uuid
    user_id: NonEmpty
    status: EngineStatus
    url: Annotated[Url, Field(description="Where the product reaches the engine; may change when it starts again.")]
    engine_version: Annotated[NonEmpty, Field(description="Its image.")]
    created_at: Time
    last_health_at: Annotated[Time | None, Field(description="Last probe that found it healthy.")]


def render(engine: models.Engine) -> Engine:
    """The engine as lists show it: without its key."""
    return {
        "engine_id": str(engine.pk),
        "user_id": engine.user_id,
        "status": engine.status,
        "url": url(engine),
        "engine_version": engine.engine_version,
        "created_at": iso(engine.created_at),
        "last_health_at": iso(engine.last_health_at),
    }


class EngineWithKey(Engine):
    """An engine, with its key."""

    api_key: Annotated[EngineKey, Field(description="Goes into `X-Engine-Key` of requests to the engine.")]


def render_with_key(engine: models.Engine) -> EngineWithKey:
    """The engine with its key in plaintext: only for the product that owns it. Raises EngineNotFound once it is destroyed."""
    return {**render(engine), "api_key": _key_of(engine)}


def _key_of(engine: models.Engine) -> str:
    if not engine.key_ciphertext:
        raise EngineNotFound("The engine is destroyed.")
    return crypto.decrypt(engine.key_ciphertext)


class Engines(TypedDict):
    """Engines of the product, newest first, and how many match in all."""

    engines: list[Engine]
    total: Count


class Provisioned(TypedDict):
    """A new engine, healthy."""

    engine_id: Uuid
    user_id: NonEmpty
    status: EngineStatus
    url: Url
    api_key: EngineKey


def render_provisioned(engine: models.Engine) -> Provisioned:
    """The answer to a provision. Raises EngineNotFound once the engine is destroyed."""
    return {
        "engine_id": str(engine.pk),
        "user_id": engine.user_id,
        "status": engine.status,
        "url": url(engine),
        "api_key": _key_of(engine),
    }


class Started(TypedDict):
    """The engine runs."""

    status: Literal["running"]
    url: Url


def render_started(engine: models.Engine) -> Started:
    """The answer to a start."""
    return {"status": "running", "url": url(engine)}


class Stopped(TypedDict):
    """The engine does not run."""

    status: Literal["stopped"]


def render_stopped(_engine: models.Engine) -> Stopped:
    """The answer to a stop."""
    return {"status": "stopped"}


class Destroyed(TypedDict):
    """The engine is gone, with its data and its key."""

    status: Literal["destroyed"]
    engine_id: Uuid


def render_destroyed(engine: models.Engine) -> Destroyed:
    """The answer to a destroy."""
    return {"status": "destroyed", "engine_id": str(engine.pk)}


class NewEngineKey(TypedDict):
    """The engine is healthy with its new key."""

    engine_id: Uuid
    user_id: NonEmpty
    api_key: EngineKey


def render_rotated(engine: models.Engine) -> NewEngineKey:
    """The answer to a rotation. Raises EngineNotFound once the engine is destroyed."""
    return {"engine_id": str(engine.pk), "user_id": engine.user_id, "api_key": _key_of(engine)}


# -- admit -------------------------------------------------------------------------------------------------------------


class Admitted(TypedDict):
    """The user's request may go to the engine."""

    admitted: Literal[True]
    engine: EngineWithKey


class NotAdmitted(TypedDict):
    """The user's request may not go to the engine now."""

    admitted: Literal[False]
    engine: None
    reason: Annotated[str, choice(ADMIT_REASONS)]


ADMISSION = OneOf(
    "Admission",
    "Whether the user's request may go to the engine: with the engine, or with the reason why not.",
    (Admitted, NotAdmitted),
)


def render_admission(decided: admission.Admission) -> Admitted | NotAdmitted:
    """The answer to an admit."""
    if decided.engine is None:
        return {"admitted": False, "engine": None, "reason": decided.reason}
    return {"admitted": True, "engine": render_with_key(decided.engine)}


# -- operations --------------------------------------------------------------------------------------------------------


class Step(TypedDict):
    """How far an operation came, and when."""

    at: Time
    step: NonEmpty
    attempt: Number


def _render_step(step: Mapping[str, Any]) -> Step:
    return {"at": iso(datetime.fromisoformat(step["at"])), "step": step["step"], "attempt": step["attempt"]}


class OperationError(TypedDict):
    """Why an operation failed."""

    code: Annotated[NonEmpty, Field(description="A cause: `boot_timeout`, `image_missing`, ...")]
    message: NonEmpty


class Operation(TypedDict):
    """What became of a request."""

    operation_id: Uuid
    engine_id: Uuid
    user_id: NonEmpty
    kind: Annotated[str, choice(Kind.values)]
    state: Annotated[str, choice(OperationState.values)]
    attempt: Count
    queue: Annotated[str, choice(Queue.values)]
    queue_position: Annotated[Number | None, Field(description="1 is next; null unless it waits for its turn.")]
    created_at: Time
    finished_at: Time | None
    steps: list[Step]
    error: OperationError | None


def render_operation(operation: models.Operation) -> Operation:
    """The operation with its steps, each with its time and attempt."""
    return {
        "operation_id": str(operation.pk),
        "engine_id": str(operation.engine_id),
        "user_id": operation.engine.user_id,
        "kind": operation.kind,
        "state": operation.state,
        "attempt": operation.attempt,
        "queue": operation.queue,
        "queue_position": operations.position(operation),
        "created_at": iso(operation.created_at),
        "finished_at": iso(operation.finished_at),
        "steps": [_render_step(step) for step in operation.steps],
        "error": {"code": operation.error_code, "message": operation.error_message} if operation.error_code else None,
    }


class Accepted(TypedDict):
    """The operation goes on; `Location` is its address."""

    operation_id: Uuid
    kind: Annotated[str, choice(Kind.values)]
    state: Annotated[str, choice(OperationState.values)]


def render_accepted(operation: models.Operation) -> Accepted:
    """The answer to a request whose operation goes on."""
    return {"operation_id": str(operation.pk), "kind": operation.kind, "state": operation.state}


# -- logs --------------------------------------------------------------------------------------------------------------


class Logs(TypedDict):
    """What the engine wrote last, oldest first."""

    engine_id: Uuid
    user_id: NonEmpty
    lines: Annotated[list[str], Field(max_length=MAX_LINES)]


def render_logs(engine: models.Engine, lines: list[str]) -> Logs:
    """The answer to a request for the engine's lines."""
    return {"engine_id": str(engine.pk), "user_id": engine.user_id, "lines": lines}


# -- products ----------------------------------------------------------------------------------------------------------


class Suspension(TypedDict):
    """Whether the product is suspended, since when and why."""

    product_id: Uuid
    suspended_at: Time | None
    reason: NonEmpty | None


def render_suspension(product: Product) -> Suspension:
    """The answer to the end of a suspension."""
    reason = product.suspension_reason or None
    return {"product_id": str(product.pk), "suspended_at": iso(product.suspended_at), "reason": reason}


class Suspended(Suspension):
    """The product is suspended."""

    stopping: Annotated[Count, Field(description="Engines that are being stopped.")]
    busy: Annotated[Count, Field(description="Engines with another operation under way; they are stopped when that is over.")]


def render_suspended(product: Product, *, stopping: int, busy: int) -> Suspended:
    """The answer to a suspension."""
    return {**render_suspension(product), "stopping": stopping, "busy": busy}


class Deleted(TypedDict):
    """The product is gone, with its keys."""

    status: Literal["deleted"]
    product_id: Uuid


def render_deleted(product_id: object) -> Deleted:
    """The answer to the end of a product."""
    return {"status": "deleted", "product_id": str(product_id)}
