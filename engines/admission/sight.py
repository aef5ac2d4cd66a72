"""What an admit sees of a user's engine in one read, and what it does about it."""

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from uuid import UUID

from common import statements
from common.statements import Columns
from engines.models import IS_OPEN, Engine, Kind, Status
from policy.models import Product

ACTIVE_EVERY = timedelta(seconds=30)  # between two notes of an engine's last admit

_ENGINE = Columns(
    Engine, "e", "id", "product_id", "user_id", "status", "seq", "engine_version", "port", "memory_mb", "key_ciphertext",
    "created_at", "last_health_at",
)  # fmt: skip
_LOOK = f"""
SELECT {_ENGINE.sql}, o.id, o.kind,
       e.last_active_at IS NULL OR e.last_active_at < statement_timestamp() - interval '{ACTIVE_EVERY.total_seconds()} seconds'
FROM engines_engine e LEFT JOIN engines_operation o ON o.engine_id = e.id AND {IS_OPEN}
WHERE e.product_id = %s AND e.user_id = %s AND e.destroyed_at IS NULL
"""

REASONS = {
    Status.PROVISIONING: "engine_provisioning",
    Status.SLEEPING: "engine_sleeping",
    Status.STOPPED: "engine_stopped",
    Status.FAILED: "engine_unhealthy",
    Status.DESTROYING: "engine_destroying",
}


class Course(StrEnum):
    """What an admit does about an engine as it sees it."""

    ADMIT = "admit"
    REFUSE = "refuse"
    PROVISION = "provision"
    JOIN = "join"  # wait for an open operation that brings the engine up
    CANCEL_SLEEP = "cancel_sleep"
    WAKE = "wake"


@dataclass(frozen=True)
class Seen:
    """An engine as `look` found it, with its open operation; `stale`: its last admit is long enough ago to be noted again."""

    engine: Engine
    open_id: UUID | None
    open_kind: str | None
    stale: bool


def look(product: Product, user_id: str) -> Seen | None:
    """The user's living engine with its open operation, in one read."""
    row = statements.first(_LOOK, [product.pk, user_id])
    return None if row is None else Seen(_ENGINE.build(row[:-3]), *row[-3:])


def reason_against(seen: Seen | None) -> str:
    """Why the engine may not be called now; empty when it may."""
    if seen is None:
        return "engine_not_found"
    if seen.engine.status != Status.RUNNING:
        return REASONS[Status(seen.engine.status)]
    return "engine_busy" if seen.open_kind else ""


def plan(seen: Seen | None, *, auto_provision: bool, auto_wake: bool) -> Course:
    """What an admit with these flags does."""
    if seen is None:
        return Course.PROVISION if auto_provision else Course.REFUSE
    if not reason_against(seen):
        return Course.ADMIT
    if seen.open_kind == Kind.SLEEP:
        return Course.CANCEL_SLEEP
    if seen.engine.status == Status.PROVISIONING:
        return Course.JOIN if auto_provision else Course.REFUSE
    if seen.engine.status == Status.SLEEPING and auto_wake:
        if seen.open_kind in (Kind.WAKE, Kind.START):
            return Course.JOIN
        return Course.REFUSE if seen.open_kind else Course.WAKE
    return Course.REFUSE
