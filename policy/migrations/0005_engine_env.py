import django.contrib.postgres.fields
import django.db.models.deletion
from django.db import migrations, models
from django.db.models.functions import Now


class Migration(migrations.Migration):
    dependencies = [("policy", "0004_admin_key")]

    operations = [
        migrations.CreateModel(
            name="EngineEnv",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("version", models.IntegerField()),
                ("names", django.contrib.postgres.fields.ArrayField(models.TextField())),
                ("ciphertext", models.TextField(help_text="Fernet token of a JSON object: names and values.")),
                ("created_at", models.DateTimeField(db_default=Now())),
                (
                    "product",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="engine_envs", to="policy.product"
                    ),
                ),
            ],
            options={
                "ordering": ("-version",),
                "default_permissions": (),
                "constraints": [models.UniqueConstraint(fields=["product", "version"], name="engine_env_version_once")],
            },
        ),
    ]
