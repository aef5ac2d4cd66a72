"""SQL: each audit row by itself, compared with the catalogue, the registry, and the time at which it was written.

`tell` has a sentence for each row that cannot be true. `sift` only says whether there is a sentence, for millions of rows, which
are not joined with their operations there: `screen` compares the operations of a whole engine at once.
"""

from typing import NamedTuple

from django.db import connection

from audit.actions import Action, Takes
from audit.actors import FORM
from audit.catalogue import CATALOGUE, CLAMPED
from common.settings import settings
from fleet.consistency.engines import AT_REQUEST

MOMENT_S = 60.0  # for a transaction, with its waits for locks
HOUR_S = 3600.0
_MOMENT = f"interval '{MOMENT_S} seconds'"


def find_first_written() -> int:
    """The number of the first row with `written_at`, or the highest number: rows from before the column have lower numbers."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT coalesce(min(id), 9223372036854775807) FROM audit_log WHERE written_at IS NOT NULL")
        return int(cursor.fetchone()[0])


def tell(which: str, first_written: int) -> str:
    """SQL: a sentence for each row that cannot be true, of the rows `r` under the condition `which`.

    A row gets the first sentence that applies.
    """
    return f"""
        SELECT r.engine_id, CASE WHEN r.engine_id IS NULL THEN p.id END AS product_id, r.engine_seq AS place,
            format('row %s (%s) ', r.id, r.action) || fault AS text
        FROM audit_log r
        LEFT JOIN engines_operation o ON o.id = r.operation_id
        {_joins()}
        CROSS JOIN LATERAL (SELECT {_case(_OPERATION, first_written)} AS fault) told
        WHERE {which} AND fault IS NOT NULL
    """


class Sieve(NamedTuple):
    """SQL: tables to join the rows `r` with, and a condition: whether `tell` has a sentence for the row."""

    joins: str
    is_bad: str


def sift(first_written: int) -> Sieve:
    """The condition of `tell`, except for comparisons of a row with its operation, which `screen` makes."""
    return Sieve(_joins(), f"({_case('', first_written)}) IS NOT NULL")


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


def _case(operation: str, first_written: int) -> str:
    return f"CASE {_FORM}{_ENGINE}{operation}{_WHO}{_TIME} END".replace("__FIRST_WRITTEN__", str(first_written))


IS_OUTCOME = f"r.to_status IS NOT NULL AND r.action NOT IN {AT_REQUEST}"
# The database refuses rows without the form: such a row is from before the refusal, or somebody else's work.
_FORM = f"""
        WHEN known.action IS NULL THEN format('is of no known action in the class %s', r.retention)
        -- Most actors are known without their form, which takes longer to look at.
        WHEN r.actor NOT IN ('system', 'admin') AND r.actor IS DISTINCT FROM p.slug AND r.actor !~ '{FORM}'
            THEN format('is by %s, which is no actor', r.actor)
        WHEN r.engine_id IS NULL AND (r.to_status IS NOT NULL OR r.operation_id IS NOT NULL
            OR entry.about IN ('engine', 'unregistered')) THEN 'names no engine'
        WHEN entry.about = 'product' AND r.engine_id IS NOT NULL THEN 'is about a product, and names an engine'
        WHEN entry.about = 'fleet' AND (r.product_id IS NOT NULL OR r.engine_id IS NOT NULL)
            THEN 'is about the fleet, and names a product or an engine'
        WHEN entry.about NOT IN ('fleet', 'unregistered') AND (r.product_id IS NULL OR r.product_slug IS NULL)
            THEN 'names no product'
"""
_ENGINE = """
        WHEN r.engine_id IS NOT NULL AND e.id IS NULL AND entry.about IS DISTINCT FROM 'unregistered'
            THEN 'is of an engine that is not in the registry'
        WHEN e.product_id <> r.product_id THEN 'names another product than the registry'
        WHEN e.id IS NOT NULL AND r.user_id IS DISTINCT FROM e.user_id THEN 'names another user than the registry'
        -- The log is ahead of the registry. An engine_seq behind is normal: the engine has moved since.
        WHEN r.engine_seq > e.seq THEN format('says move %s, the registry has %s', r.engine_seq, e.seq)
"""
_OPERATION = f"""
        WHEN r.operation_id IS NOT NULL AND o.id IS NULL
            THEN format('names operation %s, which is not in the registry', r.operation_id)
        WHEN o.engine_id <> r.engine_id THEN format('names operation %s, which is of engine %s', o.id, o.engine_id)
        -- An outcome repeats who asked for the operation, and starts with the last attempt.
        WHEN {IS_OUTCOME} AND r.actor <> o.actor THEN format('is by %s, its operation by %s', r.actor, o.actor)
        WHEN {IS_OUTCOME} AND r.call_id <> o.call_id
            THEN format('names the call %s, its operation the call %s', r.call_id, o.call_id)
        WHEN {IS_OUTCOME} AND started <> o.attempt_started_at
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
            CASE WHEN r.id > __FIRST_WRITTEN__ THEN 'does not say when it was written, although an earlier row does' END
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


def _joins() -> str:
    entries = ",\n        ".join(map(_entry, CATALOGUE))
    return f"""
    LEFT JOIN audit_action known ON known.action = r.action AND known.retention = r.retention
    -- entry: the catalogue of this code. It may lack an action of an earlier or a later version, which is known all the same.
    LEFT JOIN (VALUES
        {entries}
    ) entry(action, about, longest, untimed) ON entry.action = r.action
    -- LEFT: rows without an engine or a product in the registry stay, because they disagree.
    LEFT JOIN engines_engine e ON e.id = r.engine_id
    LEFT JOIN policy_product p ON p.id = r.product_id
    LEFT JOIN policy_platformkey platform_key ON platform_key.id = r.key_id
    LEFT JOIN policy_adminkey admin_key ON admin_key.id = r.key_id
    CROSS JOIN LATERAL (SELECT
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
"""
