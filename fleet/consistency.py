"""Whether the audit log, replayed, gives the registry: every engine where it does not, and what disagrees.

Moves of an engine are rows with a `to_status`; they are replayed by `engine_seq`, never by time. Retention may have taken the
oldest moves of an engine that is older than the log's window, and the rows of operations that began before it; nothing else may
be missing. All of it is one SQL statement, so that millions of rows stay in the database and only what disagrees comes out.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from uuid import UUID

from django.db import connection, transaction

from audit.actions import Action, Retention
from engines.models import OperationState, Status

SHOWN = 5  # disagreements of one engine that are spelled out
_CHUNK = 500  # engines fetched at a time

_MOVES = f"""
SELECT engine_id, engine_seq AS place, text FROM (
    SELECT coalesce(m.engine_id, e.id) AS engine_id, m.engine_seq,
        CASE
        WHEN m.id IS NULL THEN
            CASE WHEN e.created_at >= starts THEN format('no move is recorded, the registry has %s', e.seq) END
        WHEN m.engine_seq IS NULL OR m.engine_seq < 1 THEN format('row %s is a move without a number', m.id)
        WHEN m.engine_seq = m.prev_seq THEN format('move %s is recorded twice', m.engine_seq)
        WHEN m.engine_seq > m.prev_seq + 1 THEN format('moves %s to %s are missing', m.prev_seq + 1, m.engine_seq - 1)
        WHEN m.prev_seq IS NULL AND m.engine_seq > 1 THEN
            CASE WHEN e.created_at >= starts THEN format('moves 1 to %s are missing', m.engine_seq - 1) END
        WHEN m.prev_to = '{Status.DESTROYED}' THEN format('move %s comes after its end', m.engine_seq)
        WHEN m.from_status IS DISTINCT FROM m.prev_to THEN
            format('move %s leaves %s, after %s',
                   m.engine_seq, coalesce(m.from_status, 'nothing'), coalesce(m.prev_to, 'nothing'))
        END AS chain,
        CASE
        WHEN NOT m.is_last OR e.id IS NULL THEN NULL
        WHEN m.engine_seq <> e.seq THEN format('the log ends with move %s, the registry with %s', m.engine_seq, e.seq)
        WHEN m.to_status <> e.status THEN format('the log ends as %s, the registry says %s', m.to_status, e.status)
        END AS ending
    FROM engines_engine e
    FULL JOIN (
        SELECT id, engine_id, engine_seq, from_status, to_status,
            lag(engine_seq) OVER replay AS prev_seq, lag(to_status) OVER replay AS prev_to,
            lead(id) OVER replay IS NULL AS is_last
        FROM audit_log WHERE to_status IS NOT NULL AND engine_id IS NOT NULL
        WINDOW replay AS (PARTITION BY engine_id ORDER BY engine_seq NULLS FIRST, id)
    ) m ON m.engine_id = e.id
    CROSS JOIN (SELECT starts FROM audit_window WHERE retention = '{Retention.STANDARD}') live
) replayed CROSS JOIN LATERAL (VALUES (chain), (ending)) told(text)
WHERE (chain IS NOT NULL OR ending IS NOT NULL) AND text IS NOT NULL
"""

_ROWS = """
SELECT engine_id, place, text FROM (
    SELECT r.engine_id, r.engine_seq AS place, format('row %s (%s) ', r.id, r.action) || CASE
        WHEN r.engine_id IS NULL THEN 'names no engine'
        WHEN e.id IS NULL THEN 'is of an engine that is not in the registry'
        WHEN r.product_id IS DISTINCT FROM e.product_id THEN 'names another product than the registry'
        WHEN r.user_id IS DISTINCT FROM e.user_id THEN 'names another user than the registry'
        WHEN r.engine_seq > e.seq THEN format('says move %s, the registry has %s', r.engine_seq, e.seq)
        WHEN r.operation_id IS NOT NULL AND o.id IS NULL
            THEN format('names operation %s, which is not in the registry', r.operation_id)
        WHEN o.engine_id <> r.engine_id THEN format('names operation %s, which is of engine %s', o.id, o.engine_id)
        END AS text
    FROM audit_log r
    LEFT JOIN engines_engine e ON e.id = r.engine_id
    LEFT JOIN engines_operation o ON o.id = r.operation_id
    WHERE r.engine_id IS NOT NULL OR r.to_status IS NOT NULL OR r.operation_id IS NOT NULL
) compared WHERE text IS NOT NULL
"""

_OPERATIONS = f"""
SELECT engine_id, NULL::bigint AS place,
    format('operation %s (%s, %s) has %s rows of an outcome and %s of being superseded',
           id, kind, state, outcomes, superseded) AS text
FROM (
    SELECT o.id, o.engine_id, o.kind, o.state, coalesce(r.outcomes, 0) AS outcomes, coalesce(r.superseded, 0) AS superseded,
        (o.state IN ('{OperationState.SUCCEEDED}', '{OperationState.FAILED}'))::int AS outcomes_due,
        (o.state = '{OperationState.SUPERSEDED}')::int AS superseded_due,
        CASE o.state WHEN '{OperationState.SUPERSEDED}' THEN o.finished_at ELSE o.attempt_started_at END >= starts AS is_kept
    FROM engines_operation o
    LEFT JOIN (
        SELECT operation_id,
            count(*) FILTER (WHERE to_status IS NOT NULL
                AND action NOT IN ('{Action.PROVISION_REQUESTED}', '{Action.DESTROY_REQUESTED}')) AS outcomes,
            count(*) FILTER (WHERE action = '{Action.OPERATION_SUPERSEDED}') AS superseded
        FROM audit_log WHERE operation_id IS NOT NULL GROUP BY operation_id
    ) r ON r.operation_id = o.id
    CROSS JOIN (SELECT starts FROM audit_window WHERE retention = '{Retention.STANDARD}') live
) counted
WHERE outcomes > outcomes_due OR superseded > superseded_due
    OR (is_kept AND (outcomes, superseded) <> (outcomes_due, superseded_due))
"""

_DISAGREEMENTS = f"""
SELECT told.engine_id, p.slug, e.user_id, count(*), (array_agg(text ORDER BY place NULLS LAST, text))[:{SHOWN}]
FROM ({_MOVES} UNION ALL {_ROWS} UNION ALL {_OPERATIONS}) told
LEFT JOIN engines_engine e ON e.id = told.engine_id
LEFT JOIN policy_product p ON p.id = e.product_id
GROUP BY told.engine_id, p.slug, e.user_id ORDER BY told.engine_id
"""


@dataclass(frozen=True)
class Disagreement:
    """An engine, None for rows that name none, and what disagrees: the first SHOWN sentences of `count`."""

    engine_id: UUID | None
    product_slug: str | None
    user_id: str | None
    count: int
    sentences: list[str]

    def __str__(self) -> str:
        """One line."""
        who = f"engine {self.engine_id}" if self.engine_id else "no engine"
        known = f" (product {self.product_slug}, user {self.user_id})" if self.product_slug else ""
        more = f"; and {self.count - len(self.sentences)} more" if self.count > len(self.sentences) else ""
        return f"{who}{known}: {'; '.join(self.sentences)}{more}"


@dataclass(frozen=True)
class Checked:
    """What a check looked at, and how many engines disagree."""

    engines: int
    rows: int
    disagreeing: int


def check(report: Callable[[Disagreement], object]) -> Checked:
    """Compare log and registry as of one moment and call `report` for each engine that disagrees, in order of their ids.

    A fleet at work is no reason for a false alarm, and is not held up; only retention waits for the check to end.
    """
    with transaction.atomic(durable=True), connection.cursor() as cursor:
        cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        # Before the snapshot: a month that was dropped after it would be missing, and the window not yet say so.
        cursor.execute("LOCK TABLE audit_log IN ACCESS SHARE MODE")
        cursor.execute("SET LOCAL work_mem = '128MB'")
        cursor.execute("SELECT (SELECT count(*) FROM engines_engine), (SELECT count(*) FROM audit_log)")
        engines, rows = cursor.fetchone()
        found = 0
        for disagreement in _disagreements():
            report(disagreement)
            found += 1
    return Checked(engines, rows, found)


def _disagreements() -> Iterator[Disagreement]:
    with connection.chunked_cursor() as cursor:
        cursor.execute(_DISAGREEMENTS)
        while rows := cursor.fetchmany(_CHUNK):
            yield from (Disagreement(*row) for row in rows)
