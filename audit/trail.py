"""Writes the rows of `audit_log`; no other module inserts into the table.

`record` writes one row. `record_move` writes the audit row of a change of state *in the same statement* as the change: the
caller's UPDATE becomes a CTE, and the INSERT selects from the result of the UPDATE. If the UPDATE changes no row, no audit row is
written. If the INSERT fails, the UPDATE is undone.

A wrong clock refuses neither the row nor the change. A timestamp outside the existing partitions is moved to the nearest
partition, and the original time is kept in `metadata`. A duration is limited to the range from 0 to the largest integer of its
column.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from audit.actions import Action
from audit.actors import SYSTEM, Actor
from audit.catalogue import CATALOGUE, CLAMPED
from audit.metadata import check_metadata
from common import context, statements
from common.context import Call

SUBJECT = ("product_id", "product_slug", "user_id", "engine_id", "from_status", "to_status", "engine_seq")
"""Columns naming the subject of a row: arguments of `record`, or columns returned by the UPDATE given to `record_move`."""

_SUBJECT_TYPES = dict(zip(SUBJECT, ("uuid", "text", "text", "uuid", "text", "text", "bigint"), strict=True))

# The columns of the call at hand. An operation has columns of the same names.
_CALL_TYPES = {
    "call_id": "uuid", "request_id": "text", "key_id": "uuid", "client_ip": "inet", "user_agent": "text", "on_behalf_of": "text",
}  # fmt: skip

_INSERT = f"""
INSERT INTO audit_log (timestamp, {", ".join(SUBJECT)}, action, actor, metadata, duration_ms, operation_id,
    {", ".join(_CALL_TYPES)}, retention)
SELECT -- timestamp: the start, moved into the window, because only times inside the window have a partition
       greatest(w.starts, least(s.started, w.ends - interval '1 microsecond')),
       {", ".join(f"s.{column}" for column in SUBJECT)},
       %(action)s, %(actor)s,
       -- metadata: with the original start where the timestamp was moved
       CASE WHEN s.started >= w.starts AND s.started < w.ends THEN %(metadata)s::jsonb
            ELSE %(metadata)s::jsonb || jsonb_build_object('{CLAMPED}', s.started) END,
       -- duration_ms: only where the caller passed a start; limited to the range of the integer column
       CASE WHEN %(timed)s
            THEN greatest(0, least(extract(epoch FROM clock_timestamp() - s.started) * 1000, {2**31 - 1}))::int END,
       %(operation_id)s::uuid,
       {", ".join(f"%({column})s::{kind}" for column, kind in _CALL_TYPES.items())},
       %(retention)s
-- Without a start from the caller, the row has the start of the transaction.
FROM (SELECT *, coalesce(%(started)s::timestamptz, now()) AS started FROM subject) s
-- LEFT JOIN: a plain JOIN on a missing window would insert nothing, without an error, and keep the change of state.
LEFT JOIN audit_window w ON w.retention = %(retention)s
RETURNING id
"""

_RECORD = "WITH subject AS (SELECT {}) ".format(", ".join(f"%({c})s::{t} AS {c}" for c, t in _SUBJECT_TYPES.items())) + _INSERT


class NotRecorded(RuntimeError):
    """An audit row could not be written; the transaction must be rolled back with the action of the row."""


@dataclass(frozen=True)
class Subject:
    """The product, engine and change of state that a row describes; a field is null where it does not apply."""

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
    """Write one row, inside the caller's transaction if one is open, and return the row's id.

    `started` is the start of the action by the database's clock; None means now. Only a row with a given `started` gets a
    `duration_ms`. Raises ValueError or TypeError for metadata outside the catalogue.
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
    """Run `update` and write its audit row in one statement; return the audit row's id, or None when no row was updated.

    `update` is an UPDATE (or INSERT) of at most one row, returning the columns of SUBJECT. Its parameters are written `%(x)s`,
    with the values in `params`. Parameter names must differ from the names used for the audit row: give them a prefix. Raises
    ValueError for a parameter name used twice, and the errors of `record`.
    """
    common = _common(action, by, metadata, operation_id, started)
    if clash := common.keys() & params.keys():
        raise ValueError(f"parameter names already used for the audit row: {sorted(clash)}")
    with statements.cursor() as cursor:
        cursor.execute(f"WITH subject AS ({update}) {_INSERT}", {**common, **params})
        row = cursor.fetchone()
    return int(row[0]) if row else None


def _common(
    action: Action, by: Actor, metadata: Mapping[str, Any] | None, operation_id: UUID | None, started: datetime | None
) -> dict[str, Any]:
    """Parameters of an audit row that do not depend on the subject. Raises ValueError, TypeError."""
    check_metadata(action, metadata or {})
    return {
        "action": action.value,
        "actor": by,
        "metadata": Jsonb(dict(metadata or {})),
        "operation_id": operation_id,
        **call_columns(by),
        "retention": CATALOGUE[action].retention.value,
        "started": started,
        "timed": started is not None,
    }


def call_columns(by: Actor) -> dict[str, Any]:
    """The call at hand as columns of an audit row or an operation: the ids of the call, and who called.

    Work that the fleet does by itself names no caller, even within somebody's call.
    """
    call = context.current()
    if by == SYSTEM:
        call = Call(call.call_id, call.request_id)
    return {column: getattr(call, column) for column in _CALL_TYPES}
