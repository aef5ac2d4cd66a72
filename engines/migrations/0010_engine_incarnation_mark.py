from django.db import migrations, models


class Migration(migrations.Migration):
    """Code from before this migration moves `incarnation` alone; the mark then counts no more, as its number is another."""

    dependencies = [("engines", "0009_count_what_was_pruned")]

    operations = [
        migrations.AddField(
            "engine",
            "incarnation_mark",
            models.TextField(
                blank=True,
                db_default="",
                help_text="Number and random token of the valid incarnation; counts only with the number in `incarnation`.",
            ),
        ),
    ]
