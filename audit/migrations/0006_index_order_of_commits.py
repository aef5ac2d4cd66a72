"""Two indexes in the order of commits, for `audit.feed`: of all rows, and of a product's rows.

Both are built month by month without a lock that an insert would wait for. A migration that was interrupted can simply be applied
again. A month that is attached later gets the indexes by itself.
"""

from django.db import migrations

INDEXES = {"commits": "(stretch, txid, id)", "product_commits": "(product_id, stretch, txid, id)"}
CLASSES = ("standard", "probe")

MONTHS_WITHOUT = """
SELECT m.inhrelid::regclass::text FROM pg_inherits m
WHERE m.inhparent = %(table)s::regclass AND NOT m.inhdetachpending
  -- no index of the month is a part of the index of the class
  AND NOT EXISTS (
    SELECT FROM pg_index i JOIN pg_inherits part ON part.inhrelid = i.indexrelid
    WHERE i.indrelid = m.inhrelid AND part.inhparent = %(index)s::regclass)
ORDER BY 1
"""


def build(apps, schema_editor):
    with schema_editor.connection.cursor() as cursor:
        for name, columns in INDEXES.items():
            cursor.execute(f"CREATE INDEX IF NOT EXISTS audit_log_{name} ON ONLY audit_log {columns}")
            for kind in CLASSES:
                _build_class(cursor, kind, name, columns)


def _build_class(cursor, kind, name, columns):
    table, index = f"audit_log_{kind}", f"audit_log_{kind}_{name}"
    cursor.execute(f"CREATE INDEX IF NOT EXISTS {index} ON ONLY {table} {columns}")
    cursor.execute(MONTHS_WITHOUT, {"table": table, "index": index})
    for (month,) in cursor.fetchall():
        own = f"{month}_{name}"
        cursor.execute(f"DROP INDEX IF EXISTS {own}")  # an interrupted build leaves an invalid index
        cursor.execute(f"CREATE INDEX CONCURRENTLY {own} ON {month} {columns}")
        cursor.execute(f"ALTER INDEX {index} ATTACH PARTITION {own}")
    cursor.execute(
        "SELECT FROM pg_inherits WHERE inhrelid = %s::regclass AND inhparent = %s::regclass", [index, f"audit_log_{name}"]
    )
    if not cursor.fetchone():
        cursor.execute(f"ALTER INDEX audit_log_{name} ATTACH PARTITION {index}")


def drop(apps, schema_editor):
    for name in INDEXES:
        schema_editor.execute(f"DROP INDEX audit_log_{name}")


class Migration(migrations.Migration):
    atomic = False  # CREATE INDEX CONCURRENTLY runs outside transactions
    dependencies = [("audit", "0005_stretches")]
    operations = [migrations.RunPython(build, drop)]
