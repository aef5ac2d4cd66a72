"""A user's engine as an admit reads it, and the course that the admit takes."""

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from uuid import UUID

from common import statements
from common.statements import Columns
from engines.models import IS_OPEN, Engine, Kind, Status
from policy.models import Product

ACTIVE_EVERY = timedelta(seconds=30)  # between two updates of an engine's `last_active_at`

_ENGINE = Columns(
    Engine, "e", "id", "product_id", "user_id", "status", "seq", "engine_version", "port", "memory_mb", "key_ciphertext",
    "created_at", "last_health_at", "disk_used_mb", "disk_measured_at",
)  # fmt: skip
_LOOK = f"""
SELECT {_ENGINE.sql},
       o.id, o.kind,                          -- the open operation; both NULL when no operation is open
       e.last_active_at IS NULL               -- stale: the last noted admit is old enough for a new note
           OR e.last_active_at < statement_timestamp() - interval '{ACTIVE_EVERY.total_seconds()} seconds'
-- A unique index permits one open operation per engine: the join never doubles the row.
FROM engines_engine e LEFT JOIN engines_operation o ON o.engine_id = e.id AND {IS_OPEN}
-- At most one living engine per product and user. No row is locked: an admit must not wait for a writer.
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
    """The reaction of an admit to the state of an engine."""

    ADMIT = "admit"
    REFUSE = "refuse"
    PROVISION = "provision"
    JOIN = "join"  # wait for an open operation that brings the engine up
    CANCEL_SLEEP = "cancel_sleep"
    WAKE = "wake"


@dataclass(frozen=True)
class Seen:
    """An engine and its open operation, as read; `stale`: the last admit was noted long enough ago to note a new admit."""

    engine: Engine
    open_id: UUID | None
    open_kind: str | None
    stale: bool


def see(product: Product, user_id: str) -> Seen | None:
    """Read the user's living engine and its open operation, in a single statement; None without an engine."""
    row = statements.first(_LOOK, [product.pk, user_id])
    return None if row is None else Seen(_ENGINE.build(row[:-3]), *row[-3:])


def reason_against(seen: Seen | None) -> str:
    """The reason why the engine may not be called now; empty when it may."""
    if seen is None:
        return "engine_not_found"
    if seen.engine.status != Status.RUNNING:
        return REASONS[Status(seen.engine.status)]
    return "engine_busy" if seen.open_kind else ""


def choose(seen: Seen | None, *, auto_provision: bool, auto_wake: bool) -> Course:
    """The course of an admit with the given flags."""
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
