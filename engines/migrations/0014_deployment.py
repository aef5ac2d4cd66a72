from django.db import migrations, models


class Migration(migrations.Migration):
    """A new table, which old code does not know and does not need. `migrate` writes its row."""

    dependencies = [("engines", "0013_engine_proof")]

    operations = [
        migrations.CreateModel(
            name="Deployment",
            fields=[
                ("id", models.SmallIntegerField(default=1, primary_key=True, serialize=False)),
                ("name", models.TextField(help_text="ORCH_DEPLOYMENT.")),
                ("system", models.BigIntegerField(help_text="System identifier of PostgreSQL's cluster.")),
                ("database", models.BigIntegerField(help_text="Object id of the database in the cluster.")),
            ],
            options={
                "default_permissions": (),
                "constraints": [models.CheckConstraint(condition=models.Q(("id", 1)), name="deployment_is_one_row")],
            },
        ),
    ]
