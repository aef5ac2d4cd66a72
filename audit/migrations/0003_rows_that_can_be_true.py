"""A row that cannot be true is refused, whoever inserts it: `audit_check_row` looks at each row, on its way into its month.

PostgreSQL clones a row trigger of the top table to each partition, also to a month that is attached later.
"""

from django.conf import settings
from django.db import migrations, models

# The pairs that code may write when this migration is applied. Each run of `migrate` adds the pairs of its own catalogue.
PROBE = "health_check"
STANDARD = """
provision_requested provision provision_failed provision_denied start start_failed start_denied stop stop_failed sleep sleep_failed
wake wake_failed restart restart_failed rotate_key rotate_key_failed destroy_requested destroy destroy_failed operation_superseded
admit_denied capacity_exhausted health_failed auto_restart_start auto_restart_success auto_restart_failed auto_restart_gave_up
orphan_removed disk_exceeded disk_reduced key_reveal policy_register product_suspend product_resume product_delete policy_update policy_override_grant
policy_override_end platform_key_issue platform_key_rotate platform_key_revoke engine_env_update admin_key_issue admin_key_revoke
master_key_rotate retention_prune
"""

GUARD = """
-- Inserts queue behind a statement that waits for a long reader: give up soon, and run `migrate` again.
SET LOCAL lock_timeout = '5s';
-- Without a default: no row is rewritten. The column stays null in rows from before.
ALTER TABLE audit_log ADD COLUMN written_at timestamptz;

CREATE TABLE audit_action (
    action    text NOT NULL,
    retention text NOT NULL,
    PRIMARY KEY (action, retention)
);
INSERT INTO audit_action VALUES ('__PROBE__', 'probe');
INSERT INTO audit_action SELECT action, 'standard' FROM regexp_split_to_table(trim(E' \\n' FROM '__STANDARD__'), '[ \\n]+') action;

CREATE FUNCTION audit_check_row() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- `system`, `admin` and the slugs of products have one form; staff have a name of up to 150 characters after `admin:`.
    IF NEW.actor !~ '^([a-z0-9][a-z0-9-]{1,62}|admin:[^[:cntrl:]]{1,150})$' THEN
        RAISE EXCEPTION 'audit_log: an actor is system, admin, admin:<name> or the slug of a product; refused: %', left(NEW.actor, 200)
            USING ERRCODE = 'check_violation';
    END IF;
    PERFORM FROM __SCHEMA__.audit_action a WHERE a.action = NEW.action AND a.retention = NEW.retention;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'audit_log: no action % of the class % is in audit_action; run migrate', left(NEW.action, 200), NEW.retention
            USING ERRCODE = 'check_violation';
    END IF;
    IF jsonb_typeof(NEW.metadata) <> 'object' THEN
        RAISE EXCEPTION 'audit_log: metadata is an object; refused: %', jsonb_typeof(NEW.metadata)
            USING ERRCODE = 'check_violation';
    END IF;
    -- Not the writer's to choose, nor the owner's: a time given by the statement is overwritten.
    NEW.written_at := clock_timestamp();
    RETURN NEW;
END $$;
CREATE TRIGGER audit_row_possible BEFORE INSERT ON audit_log FOR EACH ROW EXECUTE FUNCTION audit_check_row();
"""

DROP = """
DROP TRIGGER audit_row_possible ON audit_log;
DROP FUNCTION audit_check_row();
DROP TABLE audit_action;
ALTER TABLE audit_log DROP COLUMN written_at;
"""

# Only the owner writes audit_action. The application may not even name the column `written_at` in an INSERT.
GRANTS = """
REVOKE ALL ON audit_action FROM "__APP__";
GRANT SELECT ON audit_action TO "__APP__";
"""


def guard(apps, schema_editor):
    """Run GUARD, with the names of the actions and the schema filled in, and GRANTS where the application is not the owner."""
    app_role = settings.DATABASES["default"]["USER"]
    with schema_editor.connection.cursor() as cursor:
        cursor.execute("SELECT quote_ident(current_schema())")
        schema = cursor.fetchone()[0]
    filled = GUARD.replace("__PROBE__", PROBE).replace("__STANDARD__", STANDARD).replace("__SCHEMA__", schema)
    schema_editor.execute(filled, params=None)
    if app_role != schema_editor.connection.settings_dict["USER"]:
        schema_editor.execute(GRANTS.replace("__APP__", app_role), params=None)


class Migration(migrations.Migration):
    dependencies = [("audit", "0002_who_called")]
    operations = [
        migrations.RunPython(guard, lambda apps, schema_editor: schema_editor.execute(DROP, params=None)),
        migrations.AddField("auditrow", "written_at", models.DateTimeField(null=True)),
    ]
