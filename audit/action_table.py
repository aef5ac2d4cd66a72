"""The table `audit_action`: the pairs of action and retention class with which a row may be inserted.

Only the owner's role writes the table, and only adds to it. During a rolling deployment, code of two versions writes rows: the
new version's actions are in the table before its code starts, and the old version's actions stay.
"""

from django.db import connections

from audit.catalogue import CATALOGUE
from audit.partitions import OWNER


def _pairs() -> dict[str, list[str]]:
    return {
        "actions": [action.value for action in CATALOGUE],
        "classes": [entry.retention.value for entry in CATALOGUE.values()],
    }


def fill() -> None:
    """Add every pair of the catalogue that the table lacks. Needs the owner's role. Without the table, does nothing."""
    with connections[OWNER].cursor() as cursor:
        cursor.execute("SELECT to_regclass('audit_action') IS NOT NULL")
        if not cursor.fetchone()[0]:  # `migrate` was asked for an earlier state
            return
        cursor.execute(
            "INSERT INTO audit_action (action, retention) SELECT * FROM unnest(%(actions)s::text[], %(classes)s::text[])"
            " ON CONFLICT DO NOTHING",
            _pairs(),
        )


def is_complete() -> bool:
    """Whether the table has every pair of the catalogue: otherwise rows of this version's actions would be refused."""
    with connections["default"].cursor() as cursor:
        cursor.execute(
            "SELECT NOT EXISTS (SELECT * FROM unnest(%(actions)s::text[], %(classes)s::text[])"
            " EXCEPT SELECT action, retention FROM audit_action)",
            _pairs(),
        )
        return bool(cursor.fetchone()[0])
