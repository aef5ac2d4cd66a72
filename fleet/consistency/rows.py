"""SQL: each audit row by itself, compared with the catalogue, the registry, and the time at which it was written."""

from audit.actions import Action, Takes
from audit.actors import FORM
from audit.catalogue import CATALOGUE, CLAMPED
from common.settings import settings
from fleet.consistency.engines import AT_REQUEST

MOMENT_S = 60.0  # for a transaction, with its waits for locks
HOUR_S = 3600.0
_MOMENT = f"interval '{MOMENT_S} seconds'"


def compare() -> str:
    """SQL: a sentence for each row that cannot be true; a row gets the first sentence that applies."""
    return _ROWS.replace("__ENTRIES__", ",\n        ".join(map(_entry, CATALOGUE)))


def longest_s(takes: Takes) -> float:
    """Seconds that an action may take at most; generous, because a machine may stand still in the middle."""
    if takes is Takes.ATTEMPT:  # a rotation may boot twice: the new instance, and then the old instance again
        return HOUR_S + 2 * settings.ENV.boot_timeout_s + settings.ENV.stop_grace_s
    return HOUR_S if takes is Takes.RUN else MOMENT_S


def _entry(action: Action) -> str:
    """An action's line of VALUES: the action, what it is about, and its longest time with and without a `duration_ms`."""
    entry = CATALOGUE[action]
    untimed = MOMENT_S if entry.takes is Takes.ATTEMPT else longest_s(entry.takes)
    return f"('{action}', '{entry.about}', interval '{longest_s(entry.takes)} seconds', interval '{untimed} seconds')"


# The database refuses rows without the form: such a row is from before the refusal, or somebody else's work.
_FORM = f"""
        WHEN known.action IS NULL THEN format('is of no known action in the class %s', r.retention)
        -- Most actors are known without their form, which takes longer to look at.
        WHEN r.actor NOT IN ('system', 'admin') AND r.actor IS DISTINCT FROM p.slug AND r.actor !~ '{FORM}'
            THEN format('is by %s, which is no actor', r.actor)
        WHEN r.engine_id IS NULL AND (r.to_status IS NOT NULL OR r.operation_id IS NOT NULL OR entry.about = 'engine')
            THEN 'names no engine'
        WHEN entry.about = 'product' AND r.engine_id IS NOT NULL THEN 'is about a product, and names an engine'
        WHEN entry.about = 'fleet' AND (r.product_id IS NOT NULL OR r.engine_id IS NOT NULL)
            THEN 'is about the fleet, and names a product or an engine'
        WHEN entry.about <> 'fleet' AND (r.product_id IS NULL OR r.product_slug IS NULL) THEN 'names no product'
"""
_ENGINE = """
        WHEN r.engine_id IS NOT NULL AND e.id IS NULL THEN 'is of an engine that is not in the registry'
        WHEN e.product_id <> r.product_id THEN 'names another product than the registry'
        WHEN e.id IS NOT NULL AND r.user_id IS DISTINCT FROM e.user_id THEN 'names another user than the registry'
        -- The log is ahead of the registry. An engine_seq behind is normal: the engine has moved since.
        WHEN r.engine_seq > e.seq THEN format('says move %s, the registry has %s', r.engine_seq, e.seq)
"""
_OPERATION = """
        WHEN r.operation_id IS NOT NULL AND o.id IS NULL
            THEN format('names operation %s, which is not in the registry', r.operation_id)
        WHEN o.engine_id <> r.engine_id THEN format('names operation %s, which is of engine %s', o.id, o.engine_id)
        -- An outcome repeats who asked for the operation, and starts with the last attempt.
        WHEN is_outcome AND r.actor <> o.actor THEN format('is by %s, its operation by %s', r.actor, o.actor)
        WHEN is_outcome AND r.call_id <> o.call_id
            THEN format('names the call %s, its operation the call %s', r.call_id, o.call_id)
        WHEN is_outcome AND started <> o.attempt_started_at
            THEN format('starts at %s, the attempt of its operation at %s', started, o.attempt_started_at)
"""
_WHO = """
        WHEN r.product_id IS NOT NULL AND p.id IS NULL THEN 'is of a product that is not in the registry'
        WHEN r.product_slug <> p.slug THEN format('calls the product %s, the registry %s', r.product_slug, p.slug)
        WHEN is_by_product AND r.actor IS DISTINCT FROM r.product_slug THEN format('is by %s, which is not its product', r.actor)
        WHEN r.key_id IS NOT NULL AND NOT CASE
            WHEN r.actor = 'admin' THEN admin_key.id IS NOT NULL
            ELSE is_by_product AND coalesce(platform_key.product_id = r.product_id, false)
            END THEN format('names the key %s, which is no key of %s', r.key_id, r.actor)
"""
# The writer chooses `timestamp`, and the database `written_at`.
_TIME = f"""
        WHEN r.written_at IS NULL THEN
            CASE WHEN r.id > first_written THEN 'does not say when it was written, although an earlier row does' END
        WHEN started IS NULL THEN format('was moved from %s, which is no time', r.metadata ->> '{CLAMPED}')
        WHEN is_moved AND NOT is_at_edge THEN format('was moved to %s, where no month begins or ends', r.timestamp)
        WHEN r.written_at < started - {_MOMENT} THEN format('starts at %s, and was written before, at %s', started, r.written_at)
        WHEN r.written_at > started + coalesce(
                CASE WHEN r.duration_ms IS NULL THEN entry.untimed ELSE entry.longest END, interval '{HOUR_S} seconds')
            THEN format('starts at %s, and was written at %s: it cannot take that long', started, r.written_at)
        WHEN r.written_at NOT BETWEEN started + r.duration_ms * interval '1 ms' - {_MOMENT}
                AND started + r.duration_ms * interval '1 ms' + {_MOMENT}
            THEN format('starts at %s, says that it took %s ms, and was written at %s', started, r.duration_ms, r.written_at)
"""
_ROWS = f"""
SELECT engine_id, CASE WHEN engine_id IS NULL THEN product_id END AS product_id, place, text FROM (
    SELECT r.engine_id, p.id AS product_id, r.engine_seq AS place, format('row %s (%s) ', r.id, r.action) || CASE
        {_FORM}{_ENGINE}{_OPERATION}{_WHO}{_TIME}
        END AS text
    FROM audit_log r
    LEFT JOIN audit_action known ON known.action = r.action AND known.retention = r.retention
    -- entry: the catalogue of this code. It may lack an action of an earlier or a later version, which is known all the same.
    LEFT JOIN (VALUES
        __ENTRIES__
    ) entry(action, about, longest, untimed) ON entry.action = r.action
    -- LEFT: rows without an engine, an operation or a product in the registry stay, because they disagree.
    LEFT JOIN engines_engine e ON e.id = r.engine_id
    LEFT JOIN engines_operation o ON o.id = r.operation_id
    LEFT JOIN policy_product p ON p.id = r.product_id
    LEFT JOIN policy_platformkey platform_key ON platform_key.id = r.key_id
    LEFT JOIN policy_adminkey admin_key ON admin_key.id = r.key_id
    -- first_written: all rows from before the column `written_at` have lower numbers.
    CROSS JOIN (SELECT min(id) AS first_written FROM audit_log WHERE written_at IS NOT NULL) column_is_there
    CROSS JOIN LATERAL (SELECT
        r.to_status IS NOT NULL AND o.id IS NOT NULL AND r.action NOT IN {AT_REQUEST} AS is_outcome,
        r.actor NOT IN ('system', 'admin', 'anonymous') AND r.actor NOT LIKE 'admin:%' AS is_by_product,
        r.metadata ? '{CLAMPED}' AS is_moved,
        -- The writer moves a time to the start of the first month that exists, or to the last microsecond of the last month.
        r.timestamp IN (date_trunc('month', r.timestamp, 'UTC'),
            date_trunc('month', r.timestamp + interval '1 microsecond', 'UTC') - interval '1 microsecond') AS is_at_edge
    ) facts
    -- started: the timestamp, or the time before it was moved into the window. The path reads a time, or gives NULL. A cast alone
    -- would fail at a forged text, and end the whole check.
    CROSS JOIN LATERAL (SELECT CASE WHEN is_moved THEN (jsonb_path_query_first_tz(r.metadata,
        '$.{CLAMPED} ? (@ like_regex "^[0-9]{{4,6}}-").datetime()', '{{}}', true) #>> '{{}}')::timestamptz
        ELSE r.timestamp END AS started) start
) compared WHERE text IS NOT NULL
"""
