from django.db import migrations, models


class Migration(migrations.Migration):
    """Only the help text changes, and no SQL is run: refusals do not quote the reason any more."""

    dependencies = [("policy", "0011_product_stops_engines")]

    operations = [
        migrations.AlterField(
            "product",
            "suspension_reason",
            models.TextField(blank=True, db_default="", default="", help_text="For operators."),
        ),
    ]
