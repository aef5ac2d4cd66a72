"""A product's figures: the last hour from the audit log, and lifetime totals from counts of its rows, which are never pruned."""

from datetime import timedelta
from typing import Annotated

from django.db.models import Avg, Count as CountOf, Q
from django.db.models.functions import Now
from pydantic import Field
from typing_extensions import TypedDict

from audit import counts
from audit.actions import Action
from audit.models import AuditRow
from common.answers import Count
from policy.models import Product


class Metrics(TypedDict):
    """Figures of the last hour, and two lifetime totals."""

    provisions_1h: Count
    crashes_1h: Count
    restarts_1h: Count
    avg_boot_ms: Annotated[Count | None, Field(description="Average of the last hour's provisions; null without provisions.")]
    total_provisions: Count
    total_destroys: Count


def of_product(product: Product) -> Metrics:
    """The product's figures."""
    counted = (Action.PROVISION, Action.HEALTH_FAILED, Action.AUTO_RESTART_START)
    hour = AuditRow.objects.filter(product_id=product.pk, action__in=counted, timestamp__gte=Now() - timedelta(hours=1))
    figures = hour.aggregate(
        provisions_1h=CountOf("id", filter=Q(action=Action.PROVISION)),
        crashes_1h=CountOf("id", filter=Q(action=Action.HEALTH_FAILED)),
        restarts_1h=CountOf("id", filter=Q(action=Action.AUTO_RESTART_START)),
        avg_boot_ms=Avg("duration_ms", filter=Q(action=Action.PROVISION)),
    )
    totals = counts.totals(product.pk, (Action.PROVISION, Action.DESTROY))
    average = figures["avg_boot_ms"]
    return {
        "provisions_1h": figures["provisions_1h"],
        "crashes_1h": figures["crashes_1h"],
        "restarts_1h": figures["restarts_1h"],
        "avg_boot_ms": None if average is None else round(average),
        "total_provisions": totals[Action.PROVISION],
        "total_destroys": totals[Action.DESTROY],
    }
