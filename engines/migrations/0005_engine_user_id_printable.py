from django.db import migrations, models
from django.db.models import Q


class Migration(migrations.Migration):
    """The old code refuses such names, too, so it goes on working; the length is part of the new constraint."""

    dependencies = [("engines", "0004_operation_queue")]

    operations = [
        migrations.AddConstraint(
            "engine",
            models.CheckConstraint(
                condition=Q(user_id__regex="^[^[:cntrl:]]{1,255}$") & ~Q(user_id__in=[".", ".."]),
                name="engine_user_id_printable",
            ),
        ),
        migrations.RemoveConstraint("engine", "engine_user_id_length"),
    ]
