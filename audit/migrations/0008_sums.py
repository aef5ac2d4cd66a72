"""Sums of closed rows: see `audit.sums`. Only the owner's role, which the keeper has, writes the two tables."""

from django.conf import settings
from django.db import migrations

TABLES = """
CREATE TABLE audit_sum (
    retention text    NOT NULL,
    month     date    NOT NULL,  -- of `timestamp`, in UTC: the partition
    day       date    NOT NULL,  -- of `written_at`, in UTC
    rows      bigint  NOT NULL,
    total     numeric NOT NULL,
    PRIMARY KEY (retention, month, day)
);
CREATE TABLE audit_closed (
    is_single boolean     PRIMARY KEY DEFAULT true CHECK (is_single),
    upto      bigint      NOT NULL,
    form      text        NOT NULL,
    closed_at timestamptz NOT NULL DEFAULT now()
);
"""
# The default privileges of the schema would let the application write.
GRANTS = """
REVOKE ALL ON audit_sum, audit_closed FROM "__APP__";
GRANT SELECT ON audit_sum, audit_closed TO "__APP__";
"""
DROP = "DROP TABLE audit_sum, audit_closed;"


def add_tables(apps, schema_editor):
    """Run TABLES, and GRANTS where the application's role is not the owner itself."""
    app_role = settings.DATABASES["default"]["USER"]
    schema_editor.execute(TABLES, params=None)
    if app_role != schema_editor.connection.settings_dict["USER"]:
        schema_editor.execute(GRANTS.replace("__APP__", app_role), params=None)


class Migration(migrations.Migration):
    dependencies = [("audit", "0007_hourly_counts")]
    operations = [
        migrations.RunPython(add_tables, lambda apps, schema_editor: schema_editor.execute(DROP, params=None)),
    ]
