from django.db import migrations

STRIP = [
    f"UPDATE {table} SET prefix = substr(prefix, position('-sept-' IN prefix) + 6) WHERE prefix LIKE '_k-sept-%'"
    for table in ("policy_platformkey", "policy_adminkey")
]


class Migration(migrations.Migration):
    """What is kept of a key no longer begins as a key does. Code from before only shows it, and may still insert some with it."""

    dependencies = [("policy", "0009_product_permissions")]

    operations = [migrations.RunSQL(STRIP, migrations.RunSQL.noop)]
