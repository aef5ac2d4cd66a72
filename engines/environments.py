"""Old versions of products' engine environments: removed when no engine needs them any more."""

from django.db import connection

GRACE_HOURS = 24  # after a version was replaced: longer than any transaction that has just read its number


def prune() -> int:
    """Remove every version that was replaced a day ago and that no living engine has or is being given; returns how many."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            DELETE FROM policy_engineenv v
            WHERE EXISTS (
                SELECT FROM policy_engineenv newer WHERE newer.product_id = v.product_id AND newer.version > v.version
                AND newer.created_at < now() - make_interval(hours => %s))
            AND NOT EXISTS (
                SELECT FROM engines_engine e
                WHERE e.product_id = v.product_id AND e.env_version = v.version AND e.destroyed_at IS NULL)
            AND NOT EXISTS (
                SELECT FROM engines_operation o JOIN engines_engine e ON e.id = o.engine_id
                WHERE o.state IN ('pending', 'running') AND e.product_id = v.product_id
                AND (o.params ->> 'env_version')::int = v.version)
            """,
            [GRACE_HOURS],
        )
        return int(cursor.rowcount)
