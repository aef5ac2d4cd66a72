"""The log's layout: partitions by retention class and month, append-only, written by the application's role and owned by another.

`audit_window` says, for each retention class, which timestamps have a partition; `trail` clamps to it. `audit_add_month` is the
only place that knows how a partition is made, for this migration and for the keeper.
"""

from django.conf import settings
from django.db import migrations, models

LAYOUT = """
CREATE SEQUENCE audit_log_id_seq AS bigint;

CREATE TABLE audit_log (
    id           bigint      NOT NULL DEFAULT nextval('audit_log_id_seq'),
    timestamp    timestamptz NOT NULL,
    product_id   uuid,
    user_id      text,
    engine_id    uuid,
    action       text        NOT NULL,
    actor        text        NOT NULL DEFAULT 'system',
    metadata     jsonb       NOT NULL DEFAULT '{}',
    duration_ms  integer,
    product_slug text,
    from_status  text,
    to_status    text,
    engine_seq   bigint,
    operation_id uuid,
    request_id   text,
    txid         xid8        NOT NULL DEFAULT pg_current_xact_id(),
    retention    text        NOT NULL DEFAULT 'standard',
    PRIMARY KEY (id, retention, timestamp)
) PARTITION BY LIST (retention);
ALTER SEQUENCE audit_log_id_seq OWNED BY audit_log.id;

CREATE TABLE audit_log_standard PARTITION OF audit_log FOR VALUES IN ('standard') PARTITION BY RANGE (timestamp);
CREATE TABLE audit_log_probe PARTITION OF audit_log FOR VALUES IN ('probe') PARTITION BY RANGE (timestamp);

CREATE INDEX audit_log_engine ON audit_log (engine_id, timestamp DESC);
CREATE INDEX audit_log_user ON audit_log (user_id, timestamp DESC);
CREATE INDEX audit_log_product_action ON audit_log (product_id, action, timestamp DESC);
CREATE INDEX audit_log_product ON audit_log (product_id, timestamp DESC, id DESC);
CREATE INDEX audit_log_recent ON audit_log (timestamp DESC, id DESC);
CREATE INDEX audit_log_operation ON audit_log (operation_id) WHERE operation_id IS NOT NULL;
CREATE INDEX audit_log_request ON audit_log (request_id) WHERE request_id IS NOT NULL;

CREATE FUNCTION audit_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'audit_log is append-only: % of % refused', TG_OP, TG_TABLE_NAME USING ERRCODE = 'insufficient_privilege';
END $$;

-- A statement trigger fires for the relation that the statement names, so every relation of the tree has its own.
CREATE FUNCTION audit_guard(relation regclass) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('CREATE TRIGGER audit_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON %s
                    FOR EACH STATEMENT EXECUTE FUNCTION audit_refuse()', relation);
    IF current_user <> '__APP__' THEN  -- one role for everything has its triggers only: see `check --deploy`
        EXECUTE format('REVOKE ALL ON %s FROM %I', relation, '__APP__');
        EXECUTE format('GRANT SELECT ON %s TO %I', relation, '__APP__');
    END IF;
END $$;

CREATE TABLE audit_window (
    retention text PRIMARY KEY,
    starts    timestamptz NOT NULL,
    ends      timestamptz NOT NULL CHECK (ends > starts)
);
-- Makes the partition of the month that `day` is in (UTC) and widens the window to it. Made apart and then attached: that
-- takes no lock which an insert would wait for.
CREATE FUNCTION audit_add_month(class text, day date) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    starts timestamptz := date_trunc('month', day::timestamp) AT TIME ZONE 'UTC';
    ends   timestamptz := (date_trunc('month', day::timestamp) + interval '1 month') AT TIME ZONE 'UTC';
    name   text := format('audit_log_%s_%s', class, to_char(day, 'YYYY_MM'));
BEGIN
    IF to_regclass(name) IS NULL THEN
        EXECUTE format('CREATE TABLE %I (LIKE audit_log INCLUDING DEFAULTS)', name);
        PERFORM audit_guard(name::regclass);
        EXECUTE format('ALTER TABLE audit_log_%s ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', class, name, starts, ends);
    END IF;
    INSERT INTO audit_window AS w VALUES (class, starts, ends)
        ON CONFLICT (retention) DO UPDATE SET starts = least(w.starts, excluded.starts), ends = greatest(w.ends, excluded.ends)
        WHERE excluded.starts <= w.ends AND excluded.ends >= w.starts;
    RETURN name;
END $$;
REVOKE EXECUTE ON FUNCTION audit_guard(regclass), audit_add_month(text, date) FROM PUBLIC;

SELECT audit_guard('audit_log'), audit_guard('audit_log_standard'), audit_guard('audit_log_probe');
SELECT audit_add_month(class, (date_trunc('month', now() AT TIME ZONE 'UTC') + n * interval '1 month')::date)
    FROM unnest(ARRAY['standard', 'probe']) class, generate_series(-1, 3) n ORDER BY class, n;
"""

DROP = """
DROP TABLE audit_log, audit_window;
DROP FUNCTION audit_add_month(text, date), audit_guard(regclass), audit_refuse();
"""

# Rows come in at the top only, and neither their number nor their transaction is the writer's to choose.
GRANTS = """
GRANT INSERT (timestamp, product_id, user_id, engine_id, action, actor, metadata, duration_ms, product_slug, from_status,
              to_status, engine_seq, operation_id, request_id, retention) ON audit_log TO "__APP__";
REVOKE ALL ON audit_window FROM "__APP__";
GRANT SELECT ON audit_window TO "__APP__";
GRANT USAGE ON SEQUENCE audit_log_id_seq TO "__APP__";
"""


def lay_out(apps, schema_editor):
    """Run LAYOUT with the application's role filled in, and GRANTS where it is not the owner itself."""
    app_role = settings.DATABASES["default"]["USER"]
    schema_editor.execute(LAYOUT.replace("__APP__", app_role), params=None)
    if app_role != schema_editor.connection.settings_dict["USER"]:
        schema_editor.execute(GRANTS.replace("__APP__", app_role), params=None)


class Migration(migrations.Migration):
    initial = True
    dependencies = []
    operations = [
        migrations.RunPython(lay_out, lambda apps, schema_editor: schema_editor.execute(DROP, params=None)),
        migrations.CreateModel(
            name="AuditRow",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("timestamp", models.DateTimeField()),
                ("product_id", models.UUIDField(null=True)),
                ("user_id", models.TextField(null=True)),
                ("engine_id", models.UUIDField(null=True)),
                ("action", models.TextField()),
                ("actor", models.TextField(default="system")),
                ("metadata", models.JSONField(default=dict)),
                ("duration_ms", models.IntegerField(null=True)),
                ("product_slug", models.TextField(null=True)),
                ("from_status", models.TextField(null=True)),
                ("to_status", models.TextField(null=True)),
                ("engine_seq", models.BigIntegerField(null=True)),
                ("operation_id", models.UUIDField(null=True)),
                ("request_id", models.TextField(null=True)),
                ("retention", models.TextField(default="standard")),
            ],
            options={
                "db_table": "audit_log",
                "managed": False,
                "ordering": ("-timestamp", "-id"),
                "verbose_name": "audit row",
                "default_permissions": ("view",),
            },
        ),
    ]
