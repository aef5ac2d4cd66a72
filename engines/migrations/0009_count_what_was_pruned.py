"""Provisions and destroys whose audit rows have left the log count in the lifetime totals, as they did while engines were counted.

`audit.counts` counts every row that the log still has. Here an engine's tombstone stands in for a row that is gone. The actor of
such a row is unknown: the count has an empty actor.
"""

from django.db import migrations

COUNT = """
INSERT INTO audit_hourlycount (hour, product_id, action, actor, bucket, count)
SELECT date_trunc('hour', e.{at} AT TIME ZONE 'UTC') AT TIME ZONE 'UTC', e.product_id, '{action}', '', -1, count(*)
FROM engines_engine e
WHERE e.{at} IS NOT NULL AND NOT EXISTS (SELECT FROM audit_log a WHERE a.engine_id = e.id AND a.action = '{action}')
GROUP BY 1, 2
"""


def count(apps, schema_editor):
    for action, at in (("provision", "provisioned_at"), ("destroy", "destroyed_at")):
        schema_editor.execute(COUNT.format(action=action, at=at), params=None)


class Migration(migrations.Migration):
    dependencies = [("engines", "0008_operation_call"), ("audit", "0007_hourly_counts")]
    operations = [migrations.RunPython(count, migrations.RunPython.noop)]
