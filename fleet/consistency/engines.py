"""SQL: the moves and operations of the engines `__ENGINES__`, an array of ids, compared with the registry.

Replay orders moves by `engine_seq`, never by time. Retention may have removed the oldest moves of an engine created before the
log's window, and the rows of operations begun before the window. No further row may be missing.
"""

from audit.actions import Action, Retention
from engines.models import OperationState, Status

ENGINES = "__ENGINES__"
"""Stands in the statements below for an array of engine ids, as SQL."""

AT_REQUEST = f"('{Action.PROVISION_REQUESTED}', '{Action.DESTROY_REQUESTED}')"
"""SQL: the actions of moves at a request. They open an operation; every other move with an operation is its outcome."""

MOVES = f"""
-- Replay the moves of the engines. place: the number of the move, to sort the sentences of an engine.
SELECT engine_id, NULL::uuid AS product_id, engine_seq AS place, text FROM (
    SELECT coalesce(m.engine_id, e.id) AS engine_id, m.engine_seq,
        -- chain: the first defect found by comparing a move with the previous move of the engine.
        -- The order of the cases matters: a later case relies on numbers accepted by the earlier cases.
        CASE
        -- An engine without any move. Retention may have removed all moves of an engine older than the window.
        WHEN m.id IS NULL THEN
            CASE WHEN e.created_at >= starts THEN format('no move is recorded, the registry has %s', e.seq) END
        WHEN m.engine_seq IS NULL OR m.engine_seq < 1 THEN format('row %s is a move without a number', m.id)
        WHEN m.engine_seq = m.prev_seq THEN format('move %s is recorded twice', m.engine_seq)
        WHEN m.engine_seq > m.prev_seq + 1 THEN format('moves %s to %s are missing', m.prev_seq + 1, m.engine_seq - 1)
        -- The first recorded move is not move 1. Only retention may have removed the moves before.
        WHEN m.prev_seq IS NULL AND m.engine_seq > 1 THEN
            CASE WHEN e.created_at >= starts THEN format('moves 1 to %s are missing', m.engine_seq - 1) END
        WHEN m.prev_to = '{Status.DESTROYED}' THEN format('move %s comes after the destroy', m.engine_seq)
        -- A move must leave the state in which the previous move ended; move 1 leaves no state (NULL).
        WHEN m.from_status IS DISTINCT FROM m.prev_to THEN
            format('move %s leaves %s, after %s',
                   m.engine_seq, coalesce(m.from_status, 'nothing'), coalesce(m.prev_to, 'nothing'))
        END AS chain,
        -- ending: the last move of an engine must have the number and the state of the registry.
        CASE
        WHEN NOT m.is_last OR e.id IS NULL THEN NULL
        WHEN m.engine_seq <> e.seq THEN format('the log ends with move %s, the registry with %s', m.engine_seq, e.seq)
        WHEN m.to_status <> e.status THEN format('the log ends as %s, the registry says %s', m.to_status, e.status)
        END AS ending
    FROM (SELECT * FROM engines_engine WHERE id = ANY(__ENGINES__)) e
    -- FULL: keeps engines without moves, and moves without an engine in the registry.
    FULL JOIN (
        SELECT id, engine_id, engine_seq, from_status, to_status,
            lag(engine_seq) OVER replay AS prev_seq, lag(to_status) OVER replay AS prev_to,
            lead(id) OVER replay IS NULL AS is_last
        FROM audit_log WHERE to_status IS NOT NULL AND engine_id = ANY(__ENGINES__)
        -- The window holds all moves of an engine in their order; lag reads the previous move, lead finds the last move.
        -- NULLS FIRST: a move without a number must not hide the last numbered move. id makes the order of duplicates stable.
        WINDOW replay AS (PARTITION BY engine_id ORDER BY engine_seq NULLS FIRST, id)
    ) m ON m.engine_id = e.id
    -- starts: the oldest time kept by retention. All moves are in the standard class.
    CROSS JOIN (SELECT starts FROM audit_window WHERE retention = '{Retention.STANDARD}') live
-- LATERAL: a result row per sentence, because a move can have a defect of the chain and of the ending.
) replayed CROSS JOIN LATERAL (VALUES (chain), (ending)) told(text)
WHERE (chain IS NOT NULL OR ending IS NOT NULL) AND text IS NOT NULL
"""

OPERATIONS = f"""
-- Compare the number of audit rows of every operation with the number due by the state of the operation.
SELECT engine_id, NULL::uuid AS product_id, NULL::bigint AS place,
    format('operation %s (%s, %s) has %s rows of an outcome and %s of being superseded',
           id, kind, state, outcomes, superseded) AS text
FROM (
    SELECT o.id, o.engine_id, o.kind, o.state, r.outcomes, r.superseded,
        -- Due: a single outcome of a finished operation, a single row of a superseded operation, none of an open operation.
        (o.state IN ('{OperationState.SUCCEEDED}', '{OperationState.FAILED}'))::int AS outcomes_due,
        (o.state = '{OperationState.SUPERSEDED}')::int AS superseded_due,
        -- is_kept: the row due is within the window. The timestamp of a row is the start of its action: an outcome has the
        -- start of the attempt, a supersession the moment of superseding.
        CASE o.state WHEN '{OperationState.SUPERSEDED}' THEN o.finished_at ELSE o.attempt_started_at END >= starts AS is_kept
    FROM engines_operation o
    -- LATERAL: a look into the index for each operation, because a row may name the operation of another engine.
    CROSS JOIN LATERAL (
        SELECT
            -- An outcome is a move, except for the moves at the request: they open an operation.
            count(*) FILTER (WHERE to_status IS NOT NULL
                AND action NOT IN {AT_REQUEST}) AS outcomes,
            count(*) FILTER (WHERE action = '{Action.OPERATION_SUPERSEDED}') AS superseded
        FROM audit_log WHERE operation_id = o.id
    ) r
    CROSS JOIN (SELECT starts FROM audit_window WHERE retention = '{Retention.STANDARD}') live
    WHERE o.engine_id = ANY(__ENGINES__)
) counted
-- Surplus rows are always wrong. Missing rows are wrong only if retention cannot have removed them.
WHERE outcomes > outcomes_due OR superseded > superseded_due
    OR (is_kept AND (outcomes, superseded) <> (outcomes_due, superseded_due))
"""

NAMED = f"""
SELECT DISTINCT o.engine_id FROM audit_log r JOIN engines_operation o ON o.id = r.operation_id
WHERE r.engine_id = ANY({ENGINES}) AND o.engine_id <> r.engine_id
"""
"""The engines whose operations are named by rows of other engines."""

TOUCHED = """
SELECT engine_id FROM audit_log WHERE id > {upto} AND engine_id IS NOT NULL
UNION
SELECT engine_id FROM engines_operation WHERE finished_at >= coalesce(
    (SELECT written_at FROM audit_log WHERE id <= {upto} ORDER BY id DESC LIMIT 1) - interval '1 hour', '-infinity')
"""
"""The engines with rows above the number `upto`, or with operations that have finished since about then."""
