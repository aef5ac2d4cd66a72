"""Counts of rows, which outlive the rows. Only the owner's role writes them: the keeper counts."""

from django.conf import settings
from django.db import migrations, models

ONCE = """
CREATE UNIQUE INDEX hourly_count_once ON audit_hourlycount (hour, product_id, action, actor, bucket) NULLS NOT DISTINCT
"""
BEGIN = "INSERT INTO audit_counting (position) VALUES ('0.0.0.0.0')"  # before the first row
GRANTS = """
REVOKE ALL ON audit_hourlycount, audit_counting FROM "__APP__";
GRANT SELECT ON audit_hourlycount, audit_counting TO "__APP__";
"""


def begin(apps, schema_editor):
    schema_editor.execute(ONCE)
    schema_editor.execute(BEGIN)
    app_role = settings.DATABASES["default"]["USER"]
    if app_role != schema_editor.connection.settings_dict["USER"]:
        schema_editor.execute(GRANTS.replace("__APP__", app_role), params=None)


class Migration(migrations.Migration):
    dependencies = [
        ("audit", "0006_index_order_of_commits"),
    ]

    operations = [
        migrations.CreateModel(
            name="Counting",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("position", models.TextField(help_text="In the order of commits, as in `audit.feed`.")),
            ],
            options={
                "default_permissions": (),
            },
        ),
        migrations.CreateModel(
            name="HourlyCount",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                (
                    "hour",
                    models.DateTimeField(
                        help_text="Its beginning; of a month that has left the log, the beginning of the month."
                    ),
                ),
                ("product_id", models.UUIDField(null=True)),
                ("action", models.TextField()),
                ("actor", models.TextField()),
                ("bucket", models.SmallIntegerField(help_text="Of the rows' durations, see `audit.counts`; -1: not measured.")),
                ("count", models.BigIntegerField()),
            ],
            options={
                "default_permissions": (),
                "indexes": [
                    models.Index(fields=["product_id", "action", "hour"], include=("count",), name="hourly_count_of_product")
                ],
            },
        ),
        migrations.RunPython(begin, migrations.RunPython.noop),
    ]
