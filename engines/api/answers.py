"""The bodies that endpoints answer with."""

from datetime import datetime
from typing import Any

from common.times import iso
from engines import operations
from engines.addresses import url
from engines.admission import Admission
from engines.errors import EngineNotFound
from engines.models import Engine, Operation
from policy import crypto
from policy.models import Product


def render(engine: Engine) -> dict[str, Any]:
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


def render_with_key(engine: Engine) -> dict[str, Any]:
    """The engine with its key in plaintext: only for the product that owns it. Raises EngineNotFound once it is destroyed."""
    if not engine.key_ciphertext:
        raise EngineNotFound("The engine is destroyed.")
    return {**render(engine), "api_key": crypto.decrypt(engine.key_ciphertext)}


def render_provisioned(engine: Engine) -> dict[str, Any]:
    full = render_with_key(engine)
    return {name: full[name] for name in ("engine_id", "user_id", "status", "url", "api_key")}


def render_rotated(engine: Engine) -> dict[str, Any]:
    full = render_with_key(engine)
    return {name: full[name] for name in ("engine_id", "user_id", "api_key")}


def render_operation(operation: Operation) -> dict[str, Any]:
    """The operation with its steps, each with its time and attempt."""
    error = {"code": operation.error_code, "message": operation.error_message} if operation.error_code else None
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
        "steps": [{**step, "at": iso(datetime.fromisoformat(step["at"]))} for step in operation.steps],
        "error": error,
    }


def render_admission(decided: Admission) -> dict[str, Any]:
    """The body of the answer to an admit."""
    if decided.engine is None:
        return {"admitted": False, "engine": None, "reason": decided.reason}
    return {"admitted": True, "engine": render_with_key(decided.engine)}


def render_suspension(product: Product) -> dict[str, Any]:
    reason = product.suspension_reason or None
    return {"product_id": str(product.pk), "suspended_at": iso(product.suspended_at), "reason": reason}
