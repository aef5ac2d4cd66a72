"""The only writer of `audit_log`.

`record` writes one row. `record_move` writes the row of a change of state *in the same statement* as the change: the UPDATE that
the caller hands over becomes a CTE, and the row is selected from what it returned. No row changed, no row written; no row
written, nothing changed.

A wrong clock is no reason to refuse either: a time outside the partitions there are is moved to the nearest one that exists and
kept in `metadata`, a duration is held between 0 and what its column can hold.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from audit.actions import CATALOGUE, CLAMPED, Action, check_metadata
from audit.actors import Actor
from common import context, statements

SUBJECT = ("product_id", "product_slug", "user_id", "engine_id", "from_status", "to_status", "engine_seq")
"""Columns that say what a row is about: given to `record`, or returned by the UPDATE that `record_move` is given."""

_SUBJECT_TYPES = dict(zip(SUBJECT, ("uuid", "text", "text", "uuid", "text", "text", "bigint"), strict=True))

_INSERT = f"""
INSERT INTO audit_log (timestamp, {", ".join(SUBJECT)}, action, actor, metadata, duration_ms, operation_id, request_id, retention)
SELECT greatest(w.starts, least(s.started, w.ends - interval '1 microsecond')),
       {", ".join(f"s.{column}" for column in SUBJECT)},
       %(action)s, %(actor)s,
       CASE WHEN s.started >= w.starts AND s.started < w.ends THEN %(metadata)s::jsonb
            ELSE %(metadata)s::jsonb || jsonb_build_object('{CLAMPED}', s.started) END,
       CASE WHEN %(timed)s
            THEN greatest(0, least(extract(epoch FROM clock_timestamp() - s.started) * 1000, {2**31 - 1}))::int END,
       %(operation_id)s::uuid, %(request_id)s::text, %(retention)s
FROM (SELECT *, coalesce(%(started)s::timestamptz, now()) AS started FROM subject) s
LEFT JOIN audit_window w ON w.retention = %(retention)s
RETURNING id
"""

_RECORD = "WITH subject AS (SELECT {}) ".format(", ".join(f"%({c})s::{t} AS {c}" for c, t in _SUBJECT_TYPES.items())) + _INSERT


class NotRecorded(RuntimeError):
    """The row could not be written; whatever it belongs to must not happen."""


@dataclass(frozen=True)
class Subject:
    """What a row is about; each field is null where it does not apply."""

    product_id: UUID | None = None
    product_slug: str | None = None
    user_id: str | None = None
    engine_id: UUID | None = None
    from_status: str | None = None
    to_status: str | None = None
    engine_seq: int | None = None


NOTHING = Subject()


def record(
    action: Action,
    subject: Subject = NOTHING,
    *,
    by: Actor,
    metadata: Mapping[str, Any] | None = None,
    operation_id: UUID | None = None,
    started: datetime | None = None,
    using: str = "default",
) -> int:
    """Write one row, in the caller's transaction if there is one, and return its id.

    `started` is when the action began, by the database's clock (now, when None); given, the row has a `duration_ms`.
    Raises ValueError or TypeError for metadata outside the catalogue.
    """
    params = {**_common(action, by, metadata, operation_id, started), **vars(subject)}
    with statements.cursor(using) as cursor:
        cursor.execute(_RECORD, params)
        return int(cursor.fetchone()[0])


def record_move(
    update: str,
    params: Mapping[str, Any],
    action: Action,
    *,
    by: Actor,
    metadata: Mapping[str, Any] | None = None,
    operation_id: UUID | None = None,
    started: datetime | None = None,
) -> int | None:
    """Run `update` and write its row as one statement; return the row's id, or None when the UPDATE hit nothing.

    `update` is an UPDATE (or INSERT) of at most one row that returns the columns of SUBJECT, with its parameters named
    `%(x)s` in `params`; names may not clash with those of the row (prefix them).
    """
    common = _common(action, by, metadata, operation_id, started)
    if clash := common.keys() & params.keys():
        raise ValueError(f"parameter names of the row: {sorted(clash)}")
    with statements.cursor() as cursor:
        cursor.execute(f"WITH subject AS ({update}) {_INSERT}", {**common, **params})
        row = cursor.fetchone()
    return int(row[0]) if row else None


def _common(
    action: Action, by: Actor, metadata: Mapping[str, Any] | None, operation_id: UUID | None, started: datetime | None
) -> dict[str, Any]:
    """Parameters of a row that do not depend on its subject."""
    check_metadata(action, metadata or {})
    return {
        "action": action.value,
        "actor": by,
        "metadata": Jsonb(dict(metadata or {})),
        "operation_id": operation_id,
        "request_id": context.request_id.get(),
        "retention": CATALOGUE[action].retention.value,
        "started": started,
        "timed": started is not None,
    }
