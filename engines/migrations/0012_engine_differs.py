from django.db import migrations, models


class Migration(migrations.Migration):
    """The next sweep fills the column."""

    dependencies = [("engines", "0011_engine_boot_timed_out")]

    operations = [
        migrations.AddField(
            "engine",
            "differs",
            models.TextField(
                blank=True,
                db_default="",
                help_text="Parts in which its instance differs from the settings or its row, comma-separated.",
            ),
        ),
        migrations.AddIndex(
            "engine",
            models.Index(condition=models.Q(("differs", ""), _negated=True), fields=["host"], name="engine_differs"),
        ),
    ]
