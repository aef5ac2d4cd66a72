import uuid

from django.db import migrations, models
from django.db.models.functions import Now


class Migration(migrations.Migration):
    dependencies = [("policy", "0003_platform_key_scopes_and_expiry")]

    operations = [
        migrations.CreateModel(
            name="AdminKey",
            fields=[
                ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                ("prefix", models.TextField()),
                ("key_hash", models.TextField(unique=True)),
                ("created_at", models.DateTimeField(db_default=Now())),
                ("last_used_at", models.DateTimeField(null=True)),
                ("expires_at", models.DateTimeField(null=True)),
                ("revoked_at", models.DateTimeField(null=True)),
                ("name", models.TextField(help_text="Names the key in the audit log.")),
            ],
            options={
                "ordering": ("-created_at",),
                "default_permissions": ("view",),
                "permissions": [("operate_adminkey", "Can issue and revoke admin keys")],
                "constraints": [
                    models.CheckConstraint(condition=models.Q(key_hash__regex=r"^[0-9a-f]{64}$"), name="admin_key_hash_form"),
                    models.UniqueConstraint(fields=["name"], condition=models.Q(revoked_at=None), name="admin_key_name_once"),
                ],
            },
        ),
    ]
