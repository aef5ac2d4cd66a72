"""Columns for the call behind a row, and for who called: see `common.context.Call`.

The columns are null without a default, so no row is rewritten, and code from before this migration goes on inserting.
"""

from django.conf import settings
from django.db import migrations, models

COLUMNS = """
-- Inserts queue behind an ALTER TABLE that waits for a long reader: give up soon, and run `migrate` again.
SET LOCAL lock_timeout = '5s';
ALTER TABLE audit_log
    ADD COLUMN call_id      uuid,
    ADD COLUMN key_id       uuid,
    ADD COLUMN client_ip    inet,
    ADD COLUMN user_agent   text,
    ADD COLUMN on_behalf_of text;
"""
GRANTS = 'GRANT INSERT (call_id, key_id, client_ip, user_agent, on_behalf_of) ON audit_log TO "__APP__";'
DROP = """
ALTER TABLE audit_log DROP COLUMN call_id, DROP COLUMN key_id, DROP COLUMN client_ip, DROP COLUMN user_agent,
    DROP COLUMN on_behalf_of;
"""


def add_columns(apps, schema_editor):
    """Run COLUMNS, and GRANTS where the application's role is not the owner itself."""
    app_role = settings.DATABASES["default"]["USER"]
    schema_editor.execute(COLUMNS, params=None)
    if app_role != schema_editor.connection.settings_dict["USER"]:
        schema_editor.execute(GRANTS.replace("__APP__", app_role), params=None)


class Migration(migrations.Migration):
    dependencies = [("audit", "0001_audit_log")]
    operations = [
        migrations.RunPython(add_columns, lambda apps, schema_editor: schema_editor.execute(DROP, params=None)),
        # The model is not managed: these only tell Django of the columns.
        migrations.AddField("auditrow", "call_id", models.UUIDField(null=True)),
        migrations.AddField("auditrow", "key_id", models.UUIDField(null=True)),
        migrations.AddField("auditrow", "client_ip", models.GenericIPAddressField(null=True)),
        migrations.AddField("auditrow", "user_agent", models.TextField(null=True)),
        migrations.AddField("auditrow", "on_behalf_of", models.TextField(null=True)),
    ]
