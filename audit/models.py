"""`audit_log` as Django sees it. The table itself, with its partitions and guards, is SQL in the first migration."""

# ruff: noqa: DJ001 (null says "does not apply", which an empty string does not)

from django.db import models

from audit.actions import Action, Retention


class AuditRow(models.Model):
    """One thing that happened. Written by `trail` only; never changed; removed by retention only.

    `timestamp` is when the action *started*. An engine's rows are in order by (`engine_seq`, `id`), never by time.
    """

    id = models.BigAutoField(primary_key=True)
    timestamp = models.DateTimeField()
    product_id = models.UUIDField(null=True)
    user_id = models.TextField(null=True)
    engine_id = models.UUIDField(null=True)
    action = models.TextField(choices=[(action.value, action.value) for action in Action])
    actor = models.TextField(default="system")
    metadata = models.JSONField(default=dict)
    duration_ms = models.IntegerField(null=True)
    product_slug = models.TextField(null=True)
    from_status = models.TextField(null=True)
    to_status = models.TextField(null=True)
    engine_seq = models.BigIntegerField(null=True)
    operation_id = models.UUIDField(null=True)
    request_id = models.TextField(null=True)
    retention = models.TextField(default=Retention.STANDARD, choices=[(kind.value, kind.value) for kind in Retention])

    class Meta:
        managed = False
        db_table = "audit_log"
        ordering = ("-timestamp", "-id")
        verbose_name = "audit row"
        default_permissions = ("view",)

    def __str__(self) -> str:
        return f"{self.action} #{self.id}"
