from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("engines", "0005_engine_user_id_printable")]

    operations = [
        migrations.AddField(
            "engine",
            "may_run",
            models.BooleanField(
                db_default=False, help_text="Its instance may still run although it is failed, and keeps its room then."
            ),
        ),
        migrations.AlterField(
            "engine",
            "image_digest",
            models.TextField(db_default="", blank=True, help_text="The image that its instance is made of."),
        ),
    ]
