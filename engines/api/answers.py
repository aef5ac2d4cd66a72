"""The JSON bodies of answers: TypedDicts, with the functions to render them."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field
from typing_extensions import TypedDict

from common.answers import Count, NonEmpty, Number, OneOf, Time, Url, Uuid, choice
from common.times import iso
from engines import admission, causes, models, operations
from engines.addresses import url
from engines.errors import EngineNotFound
from engines.log_mailbox import MAX_LINES
from engines.models import Kind, OperationState, Queue, Status
from policy import crypto
from policy.models import Product

LIVING = [status.value for status in Status if status != Status.DESTROYED]
ADMIT_REASONS = ["engine_not_found", *admission.REASONS.values(), "engine_busy"]

EngineStatus = Annotated[str, choice(LIVING)]
EngineKey = Annotated[NonEmpty, Field(pattern="^sk-sept-")]


# -- engines -----------------------------------------------------------------------------------------------------------


class Disk(TypedDict):
    """The disk space of the engine's volume."""

    used_mb: Annotated[Count | None, Field(description="By the last measurement; null before the first.")]
    limit_mb: Annotated[Count, Field(description="By the policy now.")]
    exceeded: Annotated[bool, Field(description="True: nothing starts the engine; above twice the limit the engine is stopped.")]
    measured_at: Time | None


def render_disk(engine: models.Engine, limit_mb: int) -> Disk:
    """What the engine's volume takes, and may take."""
    used_mb, measured_at = engine.disk_used_mb, iso(engine.disk_measured_at)
    return {"used_mb": used_mb, "limit_mb": limit_mb, "exceeded": (used_mb or 0) > limit_mb, "measured_at": measured_at}


class Engine(TypedDict):
    """An engine, without its key."""

    engine_id: Uuid
    user_id: NonEmpty
    status: EngineStatus
    url: Annotated[Url, Field(description="The engine's address for the product. May change whenever the engine starts.")]
    engine_version: Annotated[NonEmpty, Field(description="The engine's image.")]
    created_at: Time
    last_health_at: Annotated[Time | None, Field(description="Time of the last probe that found the engine healthy.")]
    disk: Disk


def render(engine: models.Engine, limit_mb: int) -> Engine:
    """The engine without its key, for lists; `limit_mb` is what its volume may take."""
    return {
        "engine_id": str(engine.pk),
        "user_id": engine.user_id,
        "status": engine.status,
        "url": url(engine),
        "engine_version": engine.engine_version,
        "created_at": iso(engine.created_at),
        "last_health_at": iso(engine.last_health_at),
        "disk": render_disk(engine, limit_mb),
    }


class EngineWithKey(Engine):
    """An engine, with its key."""

    api_key: Annotated[EngineKey, Field(description="Send this key in `X-Engine-Key` with every request to the engine.")]


def render_with_key(engine: models.Engine, limit_mb: int) -> EngineWithKey:
    """The engine with its key in plaintext, only for the owning product. Raises EngineNotFound if the engine is destroyed."""
    return {**render(engine, limit_mb), "api_key": _key_of(engine)}


def _key_of(engine: models.Engine) -> str:
    if not engine.key_ciphertext:
        raise EngineNotFound("The engine is destroyed.")
    return crypto.decrypt(engine.key_ciphertext)


class Engines(TypedDict):
    """A page of the product's engines, newest first, and the total number of matching engines."""

    engines: list[Engine]
    total: Count


class Provisioned(TypedDict):
    """The new engine is healthy."""

    engine_id: Uuid
    user_id: NonEmpty
    status: EngineStatus
    url: Url
    api_key: EngineKey


def render_provisioned(engine: models.Engine) -> Provisioned:
    """The answer to a provision. Raises EngineNotFound if the engine is destroyed."""
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
    """The engine is destroyed, with its data and its key."""

    status: Literal["destroyed"]
    engine_id: Uuid


def render_destroyed(engine: models.Engine) -> Destroyed:
    """The answer to a destroy."""
    return {"status": "destroyed", "engine_id": str(engine.pk)}


class NewEngineKey(TypedDict):
    """The engine has a new key and is healthy."""

    engine_id: Uuid
    user_id: NonEmpty
    api_key: EngineKey


def render_rotated(engine: models.Engine) -> NewEngineKey:
    """The answer to a rotation of the engine's key. Raises EngineNotFound if the engine is destroyed."""
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
    "Whether the user's request may go to the engine. Contains the engine if so, and otherwise the reason.",
    (Admitted, NotAdmitted),
)


def render_admission(decided: admission.Admission, limit_mb: int) -> Admitted | NotAdmitted:
    """The answer to an admit; `limit_mb` is what the volume of an engine of the product may take."""
    if decided.engine is None:
        return {"admitted": False, "engine": None, "reason": decided.reason}
    return {"admitted": True, "engine": render_with_key(decided.engine, limit_mb)}


# -- operations --------------------------------------------------------------------------------------------------------


class Step(TypedDict):
    """A step of an operation, with its time and attempt."""

    at: Time
    step: NonEmpty
    attempt: Number


def _render_step(step: Mapping[str, Any]) -> Step:
    return {"at": iso(datetime.fromisoformat(step["at"])), "step": step["step"], "attempt": step["attempt"]}


class OperationError(TypedDict):
    """Why an operation failed."""

    code: Annotated[NonEmpty, Field(description="The cause, such as `boot_timeout` or `image_missing`.")]
    message: Annotated[NonEmpty, Field(description="A sentence for people.")]


class Operation(TypedDict):
    """The state and progress of the work that a request started."""

    operation_id: Uuid
    engine_id: Uuid
    user_id: NonEmpty
    kind: Annotated[str, choice(Kind.values)]
    state: Annotated[str, choice(OperationState.values)]
    attempt: Count
    queue: Annotated[str, choice(Queue.values)]
    queue_position: Annotated[
        Number | None,
        Field(
            description="Place among the product's own operations in the queue, from 1; null unless the operation waits there."
        ),
    ]
    created_at: Time
    finished_at: Time | None
    steps: list[Step]
    error: OperationError | None
    notice: Annotated[str | None, Field(description="A sentence that the user of the engine should know; usually null.")]


def render_operation(operation: models.Operation) -> Operation:
    """The operation with its steps; every step has a time and an attempt."""
    return {
        "operation_id": str(operation.pk),
        "engine_id": str(operation.engine_id),
        "user_id": operation.engine.user_id,
        "kind": operation.kind,
        "state": operation.state,
        "attempt": operation.attempt,
        "queue": operation.queue,
        "queue_position": operations.position(operation, of_product=True),
        "created_at": iso(operation.created_at),
        "finished_at": iso(operation.finished_at),
        "steps": [_render_step(step) for step in operation.steps],
        "error": {"code": code, "message": causes.sentence(code)} if (code := operation.error_code) else None,
        "notice": _BESIDE if operation.params.get(models.BESIDE) else None,
    }


_BESIDE = (
    "There is data of an earlier engine of this user that the registry has lost. The new engine begins without this data. If the"
    " user needs the data, ask the operator to bring it back."
)


class Accepted(TypedDict):
    """The operation is not finished yet; the header `Location` is its address."""

    operation_id: Uuid
    kind: Annotated[str, choice(Kind.values)]
    state: Annotated[str, choice(OperationState.values)]


def render_accepted(operation: models.Operation) -> Accepted:
    """The body of a 202: the answer to a request with an unfinished operation."""
    return {"operation_id": str(operation.pk), "kind": operation.kind, "state": operation.state}


# -- logs --------------------------------------------------------------------------------------------------------------


class Logs(TypedDict):
    """The last lines of the engine's log, oldest first."""

    engine_id: Uuid
    user_id: NonEmpty
    lines: Annotated[list[str], Field(max_length=MAX_LINES)]


def render_logs(engine: models.Engine, lines: list[str]) -> Logs:
    """The answer to a request for the engine's log."""
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

    stopping: Annotated[Count, Field(description="Number of engines that are being stopped.")]
    busy: Annotated[Count, Field(description="Number of engines with another open operation; each is stopped afterwards.")]


def render_suspended(product: Product, *, stopping: int, busy: int) -> Suspended:
    """The answer to a suspension."""
    return {**render_suspension(product), "stopping": stopping, "busy": busy}


class Deleted(TypedDict):
    """The product is deleted, with its keys."""

    status: Literal["deleted"]
    product_id: Uuid


def render_deleted(product_id: object) -> Deleted:
    """The answer to the deletion of a product."""
    return {"status": "deleted", "product_id": str(product_id)}
