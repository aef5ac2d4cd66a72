"""SQL: which engines need a closer look. An engine whose rows agree with the registry and its operations passes.

A replay sorts all rows of the log. The screen only adds them up, in one pass: a sum of hashes over the moves of an engine tells
whether each move leaves the state in which the previous move ended, and a sum over its outcomes whether each finished operation
has its row. The screen may stop an engine that agrees, such as after a clock that was wrong: then the statements that tell have
no sentence. The screen passes an engine that disagrees with a chance of about 1 in 2^64. No writer can choose rows whose sums
hide anything, because each check draws another seed for the hashes.
"""

import secrets

from audit.actions import Action, Retention
from engines.models import OperationState, Status
from fleet.consistency.rows import IS_OUTCOME

# A state is a digit of four bits, below the number of its move; 0 is no state. No move leaves `destroyed`.
_LIVING = [f"'{status}'" for status in Status if status != Status.DESTROYED]
_BEFORE = ", ".join(_LIVING)
_AFTER = ", ".join([*_LIVING, f"'{Status.DESTROYED}'"])
_NUMBERS = 2**58  # moves of an engine at most, so that a number and a state fit into 64 bits


def engines() -> str:
    """SQL: the ids of the engines that need a closer look."""
    return _ENGINES.replace("__SEED__", str(secrets.randbits(62)))


_ENGINES = f"""
SELECT coalesce(e.id, l.engine_id) FROM engines_engine e
-- FULL: keeps rows of engines that are not in the registry.
FULL JOIN (
    SELECT engine_id,
        count(*) FILTER (WHERE to_status IS NOT NULL) AS moves,
        count(*) FILTER (WHERE left_state IS NOT NULL AND reached IS NOT NULL) AS known,
        min(engine_seq * 16 + left_state) AS first, max(engine_seq * 16 + reached) AS last,
        -- Each state but the first and the last is reached by a move and left by the next.
        sum(hashint8extended(engine_seq * 16 + reached, __SEED__)) AS reached,
        sum(hashint8extended((engine_seq - 1) * 16 + left_state, __SEED__)) AS left_states,
        sum(hash_record_extended(ROW(r.operation_id, r.actor, r.call_id, r.timestamp), __SEED__))
            FILTER (WHERE {IS_OUTCOME} AND r.operation_id IS NOT NULL) AS outcomes,
        sum(uuid_hash_extended(r.operation_id, __SEED__)) FILTER (WHERE r.action = '{Action.OPERATION_SUPERSEDED}') AS superseded
    FROM audit_log r
    CROSS JOIN LATERAL (SELECT
        CASE WHEN engine_seq BETWEEN 1 AND {_NUMBERS} THEN array_position(ARRAY[{_AFTER}], to_status) END AS reached,
        CASE WHEN to_status IS NULL OR engine_seq NOT BETWEEN 1 AND {_NUMBERS} THEN NULL
            WHEN from_status IS NULL THEN 0 ELSE array_position(ARRAY[{_BEFORE}], from_status) END AS left_state
    ) states
    WHERE engine_id IS NOT NULL GROUP BY engine_id
) l ON l.engine_id = e.id
LEFT JOIN (
    SELECT engine_id,
        sum(hash_record_extended(ROW(o.id, o.actor, o.call_id, o.attempt_started_at), __SEED__))
            FILTER (WHERE state IN ('{OperationState.SUCCEEDED}', '{OperationState.FAILED}') AND attempt_started_at >= starts)
            AS outcomes,
        sum(uuid_hash_extended(o.id, __SEED__))
            FILTER (WHERE state = '{OperationState.SUPERSEDED}' AND finished_at >= starts) AS superseded
    FROM engines_operation o
    CROSS JOIN (SELECT starts FROM audit_window WHERE retention = '{Retention.STANDARD}') live
    GROUP BY engine_id
) o ON o.engine_id = e.id
CROSS JOIN (SELECT starts FROM audit_window WHERE retention = '{Retention.STANDARD}') live
WHERE (
    CASE WHEN l.moves > 0 THEN
        known = l.moves AND (last >> 4) - (first >> 4) + 1 = l.moves
        AND last = e.seq * 16 + array_position(ARRAY[{_AFTER}], e.status)
        AND reached - left_states = hashint8extended(last, __SEED__)::numeric - hashint8extended(first - 16, __SEED__)
        -- Retention may have removed the oldest moves of an engine from before the window.
        AND (first = 16 OR (first >= 32 AND e.created_at < starts))
    ELSE e.created_at < starts END
    AND l.outcomes IS NOT DISTINCT FROM o.outcomes AND l.superseded IS NOT DISTINCT FROM o.superseded
) IS NOT TRUE
ORDER BY 1
"""

NAMED = f"""
SELECT DISTINCT r.engine_id FROM audit_log r LEFT JOIN engines_operation o ON o.id = r.operation_id
WHERE r.operation_id IS NOT NULL AND NOT ({IS_OUTCOME}) AND o.engine_id IS DISTINCT FROM r.engine_id AND r.engine_id IS NOT NULL
ORDER BY 1
"""
"""SQL: the engines with a row that is no outcome, and names an operation that is not of the engine."""
