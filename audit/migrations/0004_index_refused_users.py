"""An index of the users whom counts of refusals name: "was this user refused?" must not read the whole log.

Only counts of refusals have `users` in their metadata, and only the standard class has them: the index is small, and a row without
users costs its writer nothing but the look. The index is built month by month without a lock that an insert would wait for. A
migration that was interrupted can simply be applied again. A month that is attached later gets the index by itself.
"""

from django.db import migrations

INDEX = "USING gin ((metadata -> 'users')) WHERE metadata ? 'users'"

MONTHS_WITHOUT = """
SELECT m.inhrelid::regclass::text FROM pg_inherits m
WHERE m.inhparent = 'audit_log_standard'::regclass AND NOT m.inhdetachpending
  -- no index of the month is a part of the index of the class
  AND NOT EXISTS (
    SELECT FROM pg_index i JOIN pg_inherits part ON part.inhrelid = i.indexrelid
    WHERE i.indrelid = m.inhrelid AND part.inhparent = 'audit_log_standard_users'::regclass)
ORDER BY 1
"""


def build(apps, schema_editor):
    with schema_editor.connection.cursor() as cursor:
        cursor.execute(f"CREATE INDEX IF NOT EXISTS audit_log_standard_users ON ONLY audit_log_standard {INDEX}")
        cursor.execute(MONTHS_WITHOUT)
        for (month,) in cursor.fetchall():
            name = f"{month}_expr_idx"  # as PostgreSQL names the index of a month that is attached later
            cursor.execute(f"DROP INDEX IF EXISTS {name}")  # an interrupted build leaves an invalid index
            cursor.execute(f"CREATE INDEX CONCURRENTLY {name} ON {month} {INDEX}")
            cursor.execute(f"ALTER INDEX audit_log_standard_users ATTACH PARTITION {name}")


class Migration(migrations.Migration):
    atomic = False  # CREATE INDEX CONCURRENTLY runs outside transactions
    dependencies = [("audit", "0003_rows_that_can_be_true")]
    operations = [
        migrations.RunPython(build, lambda apps, schema_editor: schema_editor.execute("DROP INDEX audit_log_standard_users")),
    ]
