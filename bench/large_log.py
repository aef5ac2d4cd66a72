"""A large audit log that agrees with its registry: a year of moves with their operations, refusals, and two weeks of probes.

The rows are written by a few statements, past the triggers: `written_at` and `txid` have to be those of the past.
"""

from collections.abc import Iterator
from typing import Any

import psycopg

MOVES = 70  # of an engine, in the year
DAYS = 330  # between the first and the last move of an engine
PRODUCTS = 10

_PRODUCTS = """
INSERT INTO policy_product (id, slug, display_name, policy, created_at)
SELECT md5('product ' || n)::uuid, 'large-' || n, 'Large', '{}', now() - interval '2 years'
FROM generate_series(0, %(products)s - 1) n
"""
_HOST = "INSERT INTO engines_host (id, name) VALUES (gen_random_uuid(), 'local') ON CONFLICT DO NOTHING"
_ENGINES = """
INSERT INTO engines_engine (id, product_id, host_id, user_id, status, seq, engine_version, key_hash, key_ciphertext, incarnation,
    incarnations, health_failures, restart_attempts, pending_key_hash, pending_key_ciphertext, created_at, provisioned_at)
SELECT md5('engine ' || n)::uuid, md5('product ' || n %% %(products)s)::uuid, (SELECT id FROM engines_host LIMIT 1), 'user-' || n,
    'running', %(moves)s, 'bench', repeat('0', 64), 'none', 1, 1, 0, 0, '', '', %(now)s - interval '331 days', %(now)s
FROM generate_series(1, %(engines)s) n
"""
# The rows of a real log lie in the order of their time: those of an engine are far from each other.
_LIFE = """
    FROM generate_series(1, %(moves)s) k, generate_series(1, %(engines)s) n,
    LATERAL (SELECT %(now)s - make_interval(days => %(days)s + 1) + k * make_interval(secs => 86400.0 * %(days)s / %(moves)s)
        + make_interval(secs => n * 0.01) AS started,
        CASE k WHEN 1 THEN 'provision_requested' WHEN 2 THEN 'provision' ELSE (ARRAY['start', 'stop'])[1 + k %% 2] END AS action
    ) life
"""
_OPERATIONS = f"""
INSERT INTO engines_operation (id, engine_id, kind, state, queue, params, actor, call_id, request_id, incarnation, attempt,
    returned, created_at, attempt_started_at, finished_at, steps, error_code, error_message)
SELECT md5('operation ' || n || ' ' || k)::uuid, md5('engine ' || n)::uuid, action, 'succeeded', 'lifecycle', '{{}}',
    'large-' || n %% %(products)s, md5('call ' || n || ' ' || k)::uuid, 'bench-' || n || '-' || k, 1, 1, 0,
    started, started, started + interval '2 seconds', '[{{"step": "starting", "attempt": 1}}]', '', ''
{_LIFE} WHERE k > 1
"""
_ROWS = f"""
INSERT INTO audit_log (timestamp, product_id, product_slug, user_id, engine_id, action, actor, metadata, duration_ms, from_status,
    to_status, engine_seq, operation_id, call_id, request_id, written_at)
SELECT started, md5('product ' || n %% %(products)s)::uuid, 'large-' || n %% %(products)s, 'user-' || n,
    md5('engine ' || n)::uuid, action, 'large-' || n %% %(products)s, '{{"attempt": 1, "image": "bench", "port": 20000,
    "incarnation": 1}}', CASE WHEN k > 1 THEN 2000 END, CASE k WHEN 1 THEN NULL WHEN 2 THEN 'provisioning' ELSE (ARRAY['stopped',
    'running'])[1 + k %% 2] END, CASE k WHEN 1 THEN 'provisioning' ELSE (ARRAY['running', 'stopped'])[1 + k %% 2] END, k, CASE
    WHEN k > 1 THEN md5('operation ' || n || ' ' || k)::uuid END, md5('call ' || n || ' ' || k)::uuid, 'bench-' || n || '-' || k,
    started + CASE WHEN k > 1 THEN interval '2 seconds' ELSE '0' END
{_LIFE}
"""
_REFUSALS = """
INSERT INTO audit_log (timestamp, product_id, product_slug, user_id, action, actor, metadata, call_id, written_at)
SELECT started, md5('product ' || n %% %(products)s)::uuid, 'large-' || n %% %(products)s, 'user-' || n %% %(engines)s,
    'admit_denied', 'large-' || n %% %(products)s, '{"rule": "rate_limit_rpm", "limit": 600}', md5('refused ' || n)::uuid, started
FROM generate_series(1, %(others)s) n,
    LATERAL (SELECT %(now)s - make_interval(secs => 86400.0 * %(days)s * (1 - n / %(others)s::float8)) AS started) life
"""
_PROBES = """
INSERT INTO audit_log (timestamp, product_id, product_slug, user_id, engine_id, engine_seq, action, actor, metadata, call_id,
    written_at, retention)
SELECT started, md5('product ' || n %% %(engines)s %% %(products)s)::uuid, 'large-' || n %% %(engines)s %% %(products)s,
    'user-' || n %% %(engines)s, md5('engine ' || n %% %(engines)s)::uuid, %(moves)s, 'health_check', 'system',
    '{"healthy": true, "result": "ok", "failures": 0}', md5('probe ' || n)::uuid, started, 'probe'
FROM generate_series(1, %(others)s) n,
    LATERAL (SELECT %(now)s - make_interval(secs => 86400.0 * 14 * (1 - n / %(others)s::float8)) AS started) life
WHERE n %% %(engines)s > 0
"""
_STEPS = {
    "products": _PRODUCTS, "host": _HOST, "engines": _ENGINES, "operations": _OPERATIONS, "moves": _ROWS, "refusals": _REFUSALS,
    "probes": _PROBES,
}  # fmt: skip

# A bulk load builds an index in a tenth of the time that its rows take one by one.
_INDEXES = """
SELECT pg_get_indexdef(indexrelid), indexrelid::regclass::text FROM pg_index
WHERE indrelid IN ('audit_log'::regclass, 'audit_log_standard'::regclass, 'engines_operation'::regclass) AND NOT indisunique
    AND NOT EXISTS (SELECT FROM pg_inherits WHERE inhrelid = indexrelid)
"""


def fill(url: str, rows: int) -> Iterator[str]:
    """Write about `rows` audit rows, seven in ten of them moves, and yield the name of each step before it begins.

    `url` is a superuser's, of a migrated database without rows. Raises psycopg.Error.
    """
    engines = max(1, rows * 7 // 10 // MOVES)
    sizes: dict[str, Any] = {
        "products": PRODUCTS, "moves": MOVES, "days": DAYS, "engines": engines, "others": max(1, (rows - engines * MOVES) // 2),
    }  # fmt: skip
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SET session_replication_role = replica")  # past the triggers
        connection.execute("SET maintenance_work_mem = '512MB'")
        connection.execute(
            "SELECT audit_add_month(class, (date_trunc('month', now() AT TIME ZONE 'UTC') - n * interval '1 month')::date)"
            " FROM unnest(ARRAY['standard', 'probe']) class, generate_series(1, 12) n ORDER BY class, n"
        )
        sizes["now"] = connection.execute("SELECT now()").fetchall()[0][0]
        indexes = connection.execute(_INDEXES).fetchall()
        for _, name in indexes:
            connection.execute(f"DROP INDEX {name}".encode())
        for name, statement in _STEPS.items():
            yield name
            connection.execute(statement.encode(), {key: value for key, value in sizes.items() if f"%({key})s" in statement})
        yield "indexes"
        for definition, _ in indexes:
            connection.execute(definition.replace(" ON ONLY ", " ON ").encode())
        yield "statistics"
        connection.execute("VACUUM ANALYZE")
