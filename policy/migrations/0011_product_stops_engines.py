from django.db import migrations, models


class Migration(migrations.Migration):
    """Code from before this migration resumes a product and leaves the wish: it counts only while the product is suspended."""

    dependencies = [("policy", "0010_prefixes_without_marker")]

    operations = [
        migrations.AddField(
            "product",
            "stops_engines",
            models.BooleanField(
                db_default=False,
                default=False,
                help_text="While it is suspended, its engines are stopped as soon as they can be.",
            ),
        ),
    ]
