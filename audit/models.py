"""The Django model of `audit_log`. The SQL of the first migration creates the table, its partitions and its guards."""

# ruff: noqa: DJ001 (null means "does not apply", unlike an empty string)

from typing import ClassVar

from django.db import models

from audit.actions import Action, Retention


class AuditRow(models.Model):
    """One audited action. Inserted by `audit.trail`, never changed, removed by `audit.retention` with its whole month.

    `timestamp` is the *start* of the action. `written_at` is the time of the insert, by the database; null in rows older than the
    column. Sort the rows of an engine by (`engine_seq`, `id`), never by time.
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
    call_id = models.UUIDField(null=True)
    key_id = models.UUIDField(null=True)
    client_ip = models.GenericIPAddressField(null=True)
    user_agent = models.TextField(null=True)
    on_behalf_of = models.TextField(null=True)
    written_at = models.DateTimeField(null=True)
    retention = models.TextField(default=Retention.STANDARD, choices=[(kind.value, kind.value) for kind in Retention])

    class Meta:
        managed = False
        db_table = "audit_log"
        ordering = ("-timestamp", "-id")
        verbose_name = "audit row"
        default_permissions = ("view",)

    def __str__(self) -> str:
        return f"{self.action} #{self.id}"


class HourlyCount(models.Model):
    """How many rows of an action an actor has caused in an hour: written by `audit.counts`, and kept when the rows are gone.

    Unique by all columns but the count; the migration makes the index, because for Django's own a check would ask the server.
    """

    hour = models.DateTimeField(help_text="Its beginning; of a month that has left the log, the beginning of the month.")
    product_id = models.UUIDField(null=True)
    action = models.TextField()
    actor = models.TextField()
    bucket = models.SmallIntegerField(help_text="Of the rows' durations, see `audit.counts`; -1: not measured.")
    count = models.BigIntegerField()

    class Meta:
        default_permissions = ()
        indexes: ClassVar = [
            models.Index(fields=["product_id", "action", "hour"], include=["count"], name="hourly_count_of_product"),
        ]

    def __str__(self) -> str:
        return f"{self.count} {self.action} at {self.hour}"


class Counting(models.Model):
    """The table's single row says how far the rows are counted."""

    position = models.TextField(help_text="In the order of commits, as in `audit.feed`.")

    class Meta:
        default_permissions = ()

    def __str__(self) -> str:
        return self.position
