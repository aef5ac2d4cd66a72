from django.db import migrations, models


class Migration(migrations.Migration):
    """Whether an engine proves its answers. Code from before this migration neither reads nor writes the columns."""

    dependencies = [("engines", "0012_engine_differs")]

    operations = [
        migrations.AddField(
            "engine",
            "proves",
            models.BooleanField(
                db_default=False, help_text="Its incarnation has proved an answer: an answer without a proof is a stranger's."
            ),
        ),
        migrations.AddField(
            "engine",
            "answered_at",
            models.DateTimeField(
                null=True,
                help_text="Last good answer without a proof, if no later result has counted: waits for the runtime's list.",
            ),
        ),
    ]
