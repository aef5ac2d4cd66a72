"""The state of a product's engines, and of this system itself."""

from collections.abc import Mapping

from django.db import Error, connection
from django.db.migrations.executor import MigrationExecutor
from django.db.models import Count

from audit import partitions
from common.times import iso
from engines import hosts
from engines.models import Engine, Status
from policy.models import Product

CRITICAL_SHARE = 0.2  # of the engines failed, and
CRITICAL_COUNT = 5  # at least this many of them


def of_product(product: Product) -> dict[str, object]:
    """Counts by state: `total`, `by_status` (every state), `health`, `unhealthy_count`."""
    living = Engine.objects.living().filter(product=product)
    counts = {status.value: 0 for status in Status if status != Status.DESTROYED}
    counts |= dict(living.values_list("status").annotate(Count("pk")).order_by())
    total, failed = sum(counts.values()), counts[Status.FAILED]
    return {"total": total, "by_status": counts, "health": health(total, failed), "unhealthy_count": failed}


def health(total: int, failed: int) -> str:
    """`ok` without a failed engine, `critical` when many are, `degraded` between."""
    if failed == 0:
        return "ok"
    return "critical" if failed >= CRITICAL_COUNT and failed >= CRITICAL_SHARE * total else "degraded"


_migrated = False


def unavailable() -> str:
    """Why this process cannot serve, in a few words; empty when the database answers and every migration is applied."""
    global _migrated
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        if not _migrated:
            executor = MigrationExecutor(connection)
            _migrated = not executor.migration_plan(executor.loader.graph.leaf_nodes())
    except Error:
        return "database unreachable"
    return "" if _migrated else "migrations missing"


def parts() -> Mapping[str, object]:
    """Further facts for `/health`; they never decide its code."""
    away = [{"name": host.name, "unreachable_since": iso(host.unreachable_since)} for host in hosts.unreachable()]
    return {
        "audit_partitions": "ok" if partitions.months_ahead() >= partitions.AHEAD else "low",
        "hosts": f"engines unknown on {len(away)} hosts" if away else "ok",
        **({"unreachable_hosts": away} if away else {}),
    }
