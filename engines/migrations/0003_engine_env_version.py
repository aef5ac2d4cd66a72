from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("engines", "0002_host_runtime_and_room")]

    operations = [
        migrations.AddField(
            "engine",
            "env_version",
            models.IntegerField(
                db_default=0, help_text="Version of the product's environment that the valid incarnation was made with; 0: none."
            ),
        ),
    ]
