"""Rows say in which stretch of the log they were written: ids of transactions grow only within a cluster, and within a timeline.

A dump that is brought into another cluster, and a promotion, begin a new stretch. Each row's default asks the cluster who it is:
whatever connection or pool a row came through, the row cannot be counted in the stretch of another cluster.
"""

from django.conf import settings
from django.db import migrations

STRETCHES = """
-- Inserts queue behind a statement that waits for a long reader: give up soon, and run `migrate` again.
SET LOCAL lock_timeout = '5s';

-- `system` is the cluster's system identifier. A promotion, also one that ends a recovery to an earlier time, begins a timeline.
CREATE TABLE audit_stretch (
    n        smallint PRIMARY KEY,
    system   bigint   NOT NULL,
    timeline integer  NOT NULL
);
INSERT INTO audit_stretch VALUES (0, 0, 0);  -- of rows from before this column: nobody knows whose transactions wrote them

CREATE FUNCTION audit_here(OUT system bigint, OUT timeline integer) LANGUAGE sql STABLE AS $$
    -- The name of a WAL file begins with the timeline, as eight hex digits.
    SELECT (pg_catalog.pg_control_system()).system_identifier,
           ('x' || left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 8))::bit(32)::integer
$$;

-- The stretch of a row that is written here and now. The first row of a new stretch begins it.
CREATE FUNCTION audit_stretch_of_row() RETURNS smallint LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    here   record := __SCHEMA__.audit_here();
    latest record;
BEGIN
    SELECT s.n, s.system, s.timeline INTO latest FROM __SCHEMA__.audit_stretch s ORDER BY s.n DESC LIMIT 1;
    IF latest.system = here.system AND latest.timeline = here.timeline THEN
        RETURN latest.n;
    END IF;
    -- One transaction begins the stretch; the others wait for its end, and look again.
    PERFORM pg_advisory_xact_lock(hashtext('audit_log'), hashtext('stretch'));
    SELECT s.n, s.system, s.timeline INTO latest FROM __SCHEMA__.audit_stretch s ORDER BY s.n DESC LIMIT 1;
    IF latest.system = here.system AND latest.timeline = here.timeline THEN
        RETURN latest.n;
    END IF;
    INSERT INTO __SCHEMA__.audit_stretch VALUES (latest.n + 1, here.system, here.timeline);
    RETURN latest.n + 1;
END $$;

ALTER TABLE audit_log ADD COLUMN stretch smallint NOT NULL DEFAULT 0;  -- a constant: no row is rewritten
ALTER TABLE audit_log ALTER COLUMN stretch SET DEFAULT audit_stretch_of_row();
"""

DROP = """
ALTER TABLE audit_log DROP COLUMN stretch;
DROP FUNCTION audit_stretch_of_row();
DROP FUNCTION audit_here();
DROP TABLE audit_stretch;
"""

# The application may not even name the column `stretch` in an INSERT.
GRANTS = """
REVOKE ALL ON audit_stretch FROM "__APP__";
GRANT SELECT ON audit_stretch TO "__APP__";
"""


def add(apps, schema_editor):
    """Run STRETCHES with the schema filled in, and GRANTS where the application is not the owner."""
    app_role = settings.DATABASES["default"]["USER"]
    with schema_editor.connection.cursor() as cursor:
        cursor.execute("SELECT quote_ident(current_schema())")
        schema = cursor.fetchone()[0]
    schema_editor.execute(STRETCHES.replace("__SCHEMA__", schema), params=None)
    if app_role != schema_editor.connection.settings_dict["USER"]:
        schema_editor.execute(GRANTS.replace("__APP__", app_role), params=None)


class Migration(migrations.Migration):
    dependencies = [("audit", "0004_index_refused_users")]
    operations = [migrations.RunPython(add, lambda apps, schema_editor: schema_editor.execute(DROP, params=None))]
