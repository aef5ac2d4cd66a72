from django.db import migrations, models


class Migration(migrations.Migration):
    """Code from before this migration knows no tombstones: delete no product before all of it is gone."""

    dependencies = [("policy", "0007_product_suspension")]

    operations = [
        migrations.AddField(
            "product",
            "deleted_at",
            models.DateTimeField(help_text="Set on the tombstone, which keeps the slug taken.", null=True),
        ),
    ]
