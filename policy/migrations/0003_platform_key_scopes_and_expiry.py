import django.contrib.postgres.fields
from django.db import migrations, models

SCOPES = ["admit", "lifecycle", "read"]


class Migration(migrations.Migration):
    """The keys there are, and those that code from before this migration issues, may do everything and never expire."""

    dependencies = [("policy", "0002_idempotency_key")]

    operations = [
        migrations.AddField("platformkey", "expires_at", models.DateTimeField(null=True)),
        migrations.AddField(
            "platformkey",
            "scopes",
            django.contrib.postgres.fields.ArrayField(
                models.TextField(choices=[("admit", "Admit"), ("lifecycle", "Lifecycle"), ("read", "Read")]), db_default=SCOPES
            ),
        ),
        migrations.AddConstraint(
            "platformkey",
            models.CheckConstraint(
                condition=models.Q(scopes__contained_by=SCOPES) & models.Q(scopes__len__gte=1), name="platform_key_scopes_known"
            ),
        ),
    ]
