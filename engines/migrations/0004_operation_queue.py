from django.db import migrations, models
from django.db.models import Q


class Migration(migrations.Migration):
    dependencies = [("engines", "0003_engine_env_version")]

    operations = [
        migrations.AddField(
            "operation",
            "queue",
            models.TextField(
                choices=[("wake", "Wake"), ("lifecycle", "Lifecycle"), ("background", "Background")], db_default="lifecycle"
            ),
        ),
        migrations.AddConstraint(
            "operation",
            models.CheckConstraint(condition=Q(queue__in=["wake", "lifecycle", "background"]), name="operation_queue_known"),
        ),
    ]
