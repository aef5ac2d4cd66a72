from django.db import migrations, models


class Migration(migrations.Migration):
    """A new table, which old code does not know and does not need. `migrate` writes its row."""

    dependencies = [("policy", "0012_suspension_reason_is_for_operators")]

    operations = [
        migrations.CreateModel(
            name="KeyCheck",
            fields=[
                ("id", models.SmallIntegerField(default=1, primary_key=True, serialize=False)),
                ("ciphertext", models.TextField(help_text="Fernet token of a fixed text.")),
            ],
            options={
                "default_permissions": (),
                "constraints": [models.CheckConstraint(condition=models.Q(("id", 1)), name="key_check_is_one_row")],
            },
        ),
    ]
