from django.db import migrations, models


class Migration(migrations.Migration):
    """Code from before this migration opens operations without a call; their rows name a call that begins with the attempt."""

    dependencies = [("engines", "0007_disk_measured")]

    operations = [
        migrations.AddField("operation", "call_id", models.UUIDField(null=True)),
        migrations.AddField("operation", "key_id", models.UUIDField(null=True, help_text="Platform key or admin key.")),
        migrations.AddField("operation", "client_ip", models.GenericIPAddressField(null=True)),
        migrations.AddField("operation", "user_agent", models.TextField(null=True)),
        migrations.AddField("operation", "on_behalf_of", models.TextField(null=True)),
    ]
