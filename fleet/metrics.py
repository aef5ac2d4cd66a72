"""A product's figures: the last hour from the audit log, the lifetime totals from the engines' rows, which are never pruned."""

from datetime import timedelta

from django.db.models import Avg, Count, Q
from django.db.models.functions import Now

from audit.actions import Action
from audit.models import AuditRow
from engines.models import Engine
from policy.models import Product


def of_product(product: Product) -> dict[str, int | None]:
    """Of the last hour: `provisions_1h`, `crashes_1h`, `restarts_1h` and `avg_boot_ms` (null without a provision in it); of all
    time: `total_provisions`, `total_destroys`."""
    counted = (Action.PROVISION, Action.HEALTH_FAILED, Action.AUTO_RESTART_START)
    hour = AuditRow.objects.filter(product_id=product.pk, action__in=counted, timestamp__gte=Now() - timedelta(hours=1))
    figures = hour.aggregate(
        provisions_1h=Count("id", filter=Q(action=Action.PROVISION)),
        crashes_1h=Count("id", filter=Q(action=Action.HEALTH_FAILED)),
        restarts_1h=Count("id", filter=Q(action=Action.AUTO_RESTART_START)),
        avg_boot_ms=Avg("duration_ms", filter=Q(action=Action.PROVISION)),
    )
    totals = Engine.objects.filter(product=product).aggregate(
        total_provisions=Count("id", filter=Q(provisioned_at__isnull=False)),
        total_destroys=Count("id", filter=Q(destroyed_at__isnull=False)),
    )
    average = figures["avg_boot_ms"]
    return {**figures, **totals, "avg_boot_ms": None if average is None else round(average)}
