from django.db import migrations, models


class Migration(migrations.Migration):
    """Which engines belong to the original of a copied database. Code from before this migration writes none."""

    dependencies = [("engines", "0014_deployment")]

    operations = [
        migrations.AddField(
            "engine",
            "disowned",
            models.BooleanField(
                db_default=False,
                help_text="Belongs to the original of this copied database: its instance and volume are never touched.",
            ),
        ),
    ]
