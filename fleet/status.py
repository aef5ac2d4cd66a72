"""The states of a product's engines, and the health of the process."""

from typing import Annotated, Literal, NotRequired, cast

from django.db import Error, connection
from django.db.migrations.executor import MigrationExecutor
from django.db.models import Count as CountOf
from pydantic import Field
from typing_extensions import TypedDict

from audit import action_table, partitions
from common.answers import Count, NonEmpty, Time, choice
from common.pooled.errors import is_read_only
from common.times import iso
from engines import deployment, hosts
from engines.models import Engine, Status as EngineStatus
from fleet import jobs
from policy import key_check
from policy.models import Product

CRITICAL_SHARE = 0.2  # least share of failed engines for `critical`
CRITICAL_COUNT = 5  # least number of failed engines for `critical`


class ByStatus(TypedDict):
    """Number of engines per state."""

    provisioning: Count
    running: Count
    sleeping: Count
    stopped: Count
    failed: Count
    destroying: Count


class Status(TypedDict):
    """The number of the product's engines per state, and their health in all."""

    total: Count
    by_status: ByStatus
    health: Annotated[str, choice(["ok", "degraded", "critical"])]
    unhealthy_count: Count


def of_product(product: Product) -> Status:
    """Count the product's engines per state, and rate their health."""
    living = Engine.objects.living().filter(product=product)
    counts = dict.fromkeys(ByStatus.__annotations__, 0)
    counts |= dict(living.values_list("status").annotate(CountOf("pk")).order_by())
    total, failed = sum(counts.values()), counts[EngineStatus.FAILED]
    return {"total": total, "by_status": cast(ByStatus, counts), "health": health(total, failed), "unhealthy_count": failed}


def health(total: int, failed: int) -> str:
    """`ok` without failed engines, `critical` at CRITICAL_SHARE and CRITICAL_COUNT or above, otherwise `degraded`."""
    if failed == 0:
        return "ok"
    return "critical" if failed >= CRITICAL_COUNT and failed >= CRITICAL_SHARE * total else "degraded"


_migrated = False


def unavailable() -> str:
    """Why the process cannot serve, in a few words.

    Empty if the database can be written, is as `migrate` leaves it, and is the one of our master key and of our deployment.
    """
    global _migrated
    try:
        connection.check_writable()  # type: ignore[attr-defined]  # of `common.pooled`
        _migrated = _migrated or is_migrated()
        if not _migrated:
            return "migrations missing"
        return _not_ours()
    except Error as error:
        return "database read-only" if is_read_only(error) else "database unreachable"


def _not_ours() -> str:
    """Why the database is not the process's own, in a few words; empty if it is. Asks with one statement. Raises Error."""
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {key_check.CIPHERTEXT}, {deployment.IS_OURS}", deployment.params())
        token, is_ours = cursor.fetchone()
    if not key_check.opens(token):
        return key_check.PART
    return "" if is_ours else deployment.PART


def is_migrated() -> bool:
    """Whether every migration is applied, and every action of the catalogue may be written."""
    executor = MigrationExecutor(connection)
    return not executor.migration_plan(executor.loader.graph.leaf_nodes()) and action_table.is_complete()


class UnreachableHost(TypedDict):
    """A host whose runtime does not answer."""

    name: NonEmpty
    unreachable_since: Time


class LateJob(TypedDict):
    """A periodic job that has not been done for two of its intervals and a minute."""

    name: NonEmpty
    done_at: Annotated[Time | None, Field(description="When the job was last done; null for never.")]


class Health(TypedDict):
    """The process can serve, whatever the further fields say."""

    status: Literal["ok"]
    audit_partitions: Annotated[str, choice(["ok", "low"])]
    disk: Annotated[str, choice(["ok", "low"]), Field(description="`low`: the disk with the engines' volumes is nearly full.")]
    hosts: Annotated[NonEmpty, Field(description="`ok`, or on how many hosts the engines' state is unknown.")]
    unreachable_hosts: NotRequired[list[UnreachableHost]]
    jobs: Annotated[NonEmpty, Field(description="`ok`, or how many periodic jobs are late.")]
    late_jobs: NotRequired[list[LateJob]]


def of_process() -> Health:
    """The answer of a process able to serve, with further facts."""
    away: list[UnreachableHost] = [
        {"name": host.name, "unreachable_since": iso(host.unreachable_since)}
        for host in hosts.unreachable()
        if host.unreachable_since is not None
    ]
    late: list[LateJob] = [{"name": job.name, "done_at": iso(job.done_at)} for job in jobs.late()]
    found: Health = {
        "status": "ok",
        "audit_partitions": "ok" if partitions.months_ahead() >= partitions.AHEAD else "low",
        "disk": "low" if hosts.is_disk_low() else "ok",
        "hosts": f"engines unknown on {len(away)} hosts" if away else "ok",
        "jobs": f"{len(late)} late" if late else "ok",
    }
    if away:
        found["unreachable_hosts"] = away
    if late:
        found["late_jobs"] = late
    return found
