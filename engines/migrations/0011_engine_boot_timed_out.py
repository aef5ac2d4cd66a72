from django.db import migrations, models


class Migration(migrations.Migration):
    """Code from before this migration never sets the column: an engine that times out under that code is started as it is."""

    dependencies = [("engines", "0010_engine_incarnation_mark")]

    operations = [
        migrations.AddField(
            "engine",
            "boot_timed_out",
            models.BooleanField(
                db_default=False, help_text="The last boot of its instance timed out: its next start makes the instance anew."
            ),
        ),
    ]
