import uuid

import django.db.models.deletion
from django.db import migrations, models
from django.db.models.functions import Now


class Migration(migrations.Migration):
    """Code from before this migration knows no overrides, and leaves the new column at its default."""

    dependencies = [
        ("policy", "0005_engine_env"),
    ]

    operations = [
        migrations.AddField(
            model_name="product",
            name="overridden",
            field=models.JSONField(
                db_default=models.Value({}, models.JSONField()),
                default=dict,
                help_text="Rules with an override: its `value` and `until` when. Read by `policy.overrides`.",
            ),
        ),
        migrations.CreateModel(
            name="PolicyOverride",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                ("rule", models.TextField()),
                ("value", models.JSONField()),
                ("reason", models.TextField()),
                ("granted_by", models.TextField(help_text="Actor, as in the audit log.")),
                ("created_at", models.DateTimeField(db_default=Now())),
                ("expires_at", models.DateTimeField()),
                (
                    "ended_at",
                    models.DateTimeField(
                        help_text="Null until its end has a row; it has no effect after `expires_at`.", null=True
                    ),
                ),
                (
                    "product",
                    models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name="overrides", to="policy.product"),
                ),
            ],
            options={
                "ordering": ("-created_at",),
                "default_permissions": (),
                "indexes": [
                    models.Index(condition=models.Q(("ended_at", None)), fields=["expires_at"], name="policy_override_due")
                ],
                "constraints": [
                    models.UniqueConstraint(
                        condition=models.Q(("ended_at", None)),
                        fields=("product", "rule"),
                        name="policy_override_one_open_per_rule",
                    )
                ],
            },
        ),
    ]
