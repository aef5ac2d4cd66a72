from django.db import migrations, models
from django.db.models import Q


class Migration(migrations.Migration):
    dependencies = [("policy", "0006_policy_override")]

    operations = [
        migrations.AddField(
            "product", "suspended_at", models.DateTimeField(help_text="Since then its users are not admitted.", null=True)
        ),
        migrations.AddField(
            "product",
            "suspension_reason",
            models.TextField(blank=True, db_default="", default="", help_text="Told to the product."),
        ),
        migrations.AddConstraint(
            "product",
            models.CheckConstraint(
                condition=(Q(suspended_at=None) & Q(suspension_reason=""))
                | (Q(suspended_at__isnull=False) & ~Q(suspension_reason="")),
                name="product_suspended_for_a_reason",
            ),
        ),
    ]
