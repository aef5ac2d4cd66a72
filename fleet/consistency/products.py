"""SQL: products, their keys and overrides, and the admin keys, replayed from the rows without an engine.

A row of the log is due for each thing in our tables, and for its end. Retention may have removed the rows of what began, or
ended, before the log's window. No further row may be missing, and no row may be too many.
"""

from dataclasses import dataclass

from audit.actions import Action, Retention

# The oldest time kept by retention. All these rows are in the standard class. The row of a change may begin a moment earlier than
# the change: hence the margin.
_LIVE = f"""
    CROSS JOIN (SELECT starts + interval '1 minute' AS starts FROM audit_window WHERE retention = '{Retention.STANDARD}') live
"""

# Rows by product and action are found in an index. A row of a product that is not in the registry is told of by itself.
_OF_PRODUCTS = "product_id = ANY(ARRAY(SELECT id FROM policy_product))"

PRODUCTS = f"""
SELECT NULL::uuid AS engine_id, p.id AS product_id, NULL::bigint AS place, text
FROM policy_product p
LEFT JOIN (
    SELECT product_id,
        count(*) FILTER (WHERE action = '{Action.POLICY_REGISTER}') AS registered,
        count(*) FILTER (WHERE action = '{Action.PRODUCT_DELETE}') AS deleted,
        -- The last row of each kind, by its number: these rows are written under the lock of the product.
        (array_agg(metadata - 'admin_key' - 'clamped_from' ORDER BY id DESC)
            FILTER (WHERE action IN ('{Action.POLICY_REGISTER}', '{Action.POLICY_UPDATE}')))[1] AS policy,
        (array_agg(action ORDER BY id DESC)
            FILTER (WHERE action IN ('{Action.PRODUCT_SUSPEND}', '{Action.PRODUCT_RESUME}')))[1] AS suspension,
        (array_agg(metadata ->> 'version' ORDER BY id DESC) FILTER (WHERE action = '{Action.ENGINE_ENV_UPDATE}'))[1] AS version
    FROM audit_log
    WHERE {_OF_PRODUCTS} AND action IN ('{Action.POLICY_REGISTER}', '{Action.PRODUCT_DELETE}', '{Action.POLICY_UPDATE}',
        '{Action.PRODUCT_SUSPEND}', '{Action.PRODUCT_RESUME}', '{Action.ENGINE_ENV_UPDATE}')
    GROUP BY product_id
) r ON r.product_id = p.id
-- env: the newest variables of the product's engines; a deleted product has none.
LEFT JOIN LATERAL (
    SELECT version, created_at FROM policy_engineenv v WHERE v.product_id = p.id ORDER BY version DESC LIMIT 1
) env ON true
{_LIVE}
CROSS JOIN LATERAL (VALUES
    (CASE WHEN registered > 1 THEN format('it was registered %s times', registered)
          WHEN coalesce(registered, 0) = 0 AND p.created_at >= starts THEN 'no row says that it was registered' END),
    (CASE WHEN deleted > (p.deleted_at IS NOT NULL)::int THEN format('it was deleted %s times in the log', deleted)
          WHEN coalesce(deleted, 0) = 0 AND p.deleted_at >= starts THEN 'no row says that it was deleted' END),
    (CASE WHEN r.policy <> p.policy THEN format('the last policy in the log is %s, the registry has %s', r.policy, p.policy) END),
    (CASE WHEN p.suspended_at IS NULL AND suspension = '{Action.PRODUCT_SUSPEND}'
              THEN 'the log ends with its suspension, the registry has none'
          WHEN p.suspended_at IS NOT NULL AND suspension = '{Action.PRODUCT_RESUME}'
              THEN 'the log ends with the end of its suspension, the registry has one'
          WHEN suspension IS NULL AND p.suspended_at >= starts THEN 'no row says that it was suspended' END),
    (CASE WHEN p.deleted_at IS NULL AND r.version <> coalesce(env.version, 0)::text
              THEN format('the log ends with version %s of its variables, the registry with %s',
                          r.version, coalesce(env.version, 0))
          WHEN r.version IS NULL AND env.created_at >= starts
              THEN format('no row tells of version %s of its variables', env.version) END)
) told(text)
WHERE text IS NOT NULL
"""


@dataclass(frozen=True)
class _Thing:
    """A kind of things with a row of their beginning and a row of their end, whose metadata name the thing under `key`."""

    noun: str
    table: str
    key: str
    begun: tuple[Action, ...]
    ended: Action
    ended_at: str
    product: str = "t.product_id"
    rows: str = _OF_PRODUCTS

    def sql(self) -> str:
        begun = ", ".join(f"'{action}'" for action in self.begun)
        return f"""
SELECT NULL::uuid AS engine_id, coalesce({self.product}, r.product_id) AS product_id, NULL::bigint AS place,
    CASE WHEN t.id IS NULL THEN format('row %s names the {self.noun} %s, which is not in the registry', r.first, r.key)
        ELSE format('{self.noun} %s has %s rows of its beginning and %s of its end',
                    t.id, coalesce(begun, 0), coalesce(ended, 0)) END AS text
FROM {self.table} t
-- FULL: keeps things without rows, and rows of things that are not in the registry.
FULL JOIN (
    SELECT product_id, metadata ->> '{self.key}' AS key, min(id) AS first,
        count(*) FILTER (WHERE action IN ({begun})) AS begun, count(*) FILTER (WHERE action = '{self.ended}') AS ended
    FROM audit_log WHERE {self.rows} AND action IN ({begun}, '{self.ended}') GROUP BY 1, 2
) r ON r.key = t.id::text AND r.product_id IS NOT DISTINCT FROM {self.product}
{_LIVE}
WHERE t.id IS NULL
    -- Surplus rows are always wrong. Missing rows are wrong only if retention cannot have removed them.
    OR begun > 1 OR ended > (t.{self.ended_at} IS NOT NULL)::int
    OR (coalesce(begun, 0) = 0 AND t.created_at >= starts) OR (coalesce(ended, 0) = 0 AND t.{self.ended_at} >= starts)
"""


_KEY_ISSUED = (Action.PLATFORM_KEY_ISSUE, Action.PLATFORM_KEY_ROTATE)
_PLATFORM_KEYS = _Thing("platform key", "policy_platformkey", "key_id", _KEY_ISSUED, Action.PLATFORM_KEY_REVOKE, "revoked_at")
_ADMIN_KEYS = _Thing(
    "admin key", "policy_adminkey", "key_id", (Action.ADMIN_KEY_ISSUE,), Action.ADMIN_KEY_REVOKE, "revoked_at",
    product="NULL::uuid", rows="product_id IS NULL",
)  # fmt: skip
_OVERRIDES = _Thing(
    "override", "policy_policyoverride", "override_id", (Action.POLICY_OVERRIDE_GRANT,), Action.POLICY_OVERRIDE_END, "ended_at"
)
THINGS = tuple(thing.sql() for thing in (_PLATFORM_KEYS, _ADMIN_KEYS, _OVERRIDES))
