"""The admin's first page: the fleet at a glance, in a few cheap queries."""

from datetime import timedelta
from typing import Any

from django.db.models import Count, Q, QuerySet
from django.db.models.functions import Now
from django.http import HttpRequest

from engines import hosts
from engines.admin.engines import STATUS_BADGES
from engines.admin.operations import describe
from engines.models import NO_VOLUME, Engine, Operation, OperationState, Status, UnregisteredEngine
from fleet import jobs

SHOWN = 10
RECENT = timedelta(days=1)


def fill(request: HttpRequest, context: dict[str, Any]) -> dict[str, Any]:
    """Unfold's callback: add the parts of the index which the user may see to `context`."""
    if request.user.has_perm("engines.view_engine"):
        context["states"], context["differing"], context["without_volume"] = _states()
        context["unreachable_hosts"] = hosts.unreachable()
    if request.user.has_perm("engines.view_unregisteredengine"):
        context["unregistered"] = UnregisteredEngine.objects.present().count()
    if request.user.has_perm("jobs.view_job"):
        context["late_jobs"] = jobs.late()
    if request.user.has_perm("engines.view_operation"):
        operations = Operation.objects.select_related("engine")
        failed = operations.filter(state=OperationState.FAILED, created_at__gte=Now() - RECENT)
        context["open_operations"] = _newest(operations.open())
        context["failed_operations"] = _newest(failed)
    return context


def _states() -> tuple[list[dict[str, Any]], int, int]:
    """Every state of a living engine with its number of engines and its badge.

    And how many engines have an instance that differs, and how many have no volume.
    """
    differ = Count("pk", filter=~Q(differs__in=["", NO_VOLUME]))
    lost = Count("pk", filter=Q(differs=NO_VOLUME))
    found = list(Engine.objects.living().values_list("status").annotate(Count("pk"), differ=differ, lost=lost).order_by())
    counts = {status: count for status, count, _, _ in found}
    states = [
        {"status": status.value, "count": counts.get(status.value, 0), "badge": STATUS_BADGES.get(status.value)}
        for status in Status
        if status != Status.DESTROYED
    ]
    return states, sum(differ for _, _, differ, _ in found), sum(lost for _, _, _, lost in found)


def _newest(operations: "QuerySet[Operation]") -> list[dict[str, Any]]:
    return [describe(operation) for operation in operations[:SHOWN]]
