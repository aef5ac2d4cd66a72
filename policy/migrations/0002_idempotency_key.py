from django.db import migrations, models
from django.db.models.functions import Now


class Migration(migrations.Migration):
    dependencies = [("policy", "0001_initial")]

    operations = [
        migrations.CreateModel(
            name="IdempotencyKey",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("caller", models.TextField(help_text="`admin`, or the product's id.")),
                ("method", models.TextField()),
                ("path", models.TextField()),
                ("key", models.TextField()),
                ("fingerprint", models.TextField(help_text="SHA-256 of the body; another body under the key is refused.")),
                ("created_at", models.DateTimeField(db_default=Now())),
                (
                    "operation_id",
                    models.UUIDField(help_text="What the call asked for; its answer is rebuilt from there.", null=True),
                ),
                (
                    "answer_ciphertext",
                    models.TextField(db_default="", help_text="The answer, where it cannot be rebuilt: a Fernet token."),
                ),
            ],
            options={
                "default_permissions": (),
                "indexes": [models.Index(fields=["created_at"], name="idempotency_key_age")],
                "constraints": [
                    models.UniqueConstraint(fields=("caller", "method", "path", "key"), name="idempotency_key_once"),
                ],
            },
        ),
    ]
