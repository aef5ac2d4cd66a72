"""The faults of this installation, a sentence for each: `manage.py doctor`. Repairs nothing, asks no runtime."""

from collections import Counter
from collections.abc import Iterator

from django.core import checks
from django.db import connection
from django.db.models import Count

from audit import partitions
from common import wording
from common.settings import settings
from engines import deployment, hosts
from engines.models import Engine, Host, UnregisteredEngine
from fleet import status
from policy import key_check

_UNAVAILABLE = {
    "database unreachable": "PostgreSQL does not answer at ORCH_DATABASE_URL: nothing else was looked at.",
    "database read-only": "PostgreSQL at ORCH_DATABASE_URL can only be read, as after a failover: nothing else was looked at.",
    "migrations missing": "Migrations are missing: run `python -m config.processes exec migrate`. Nothing else was looked at.",
    key_check.PART: f"{key_check.WRONG}. Nothing else was looked at.",
}


def find() -> Iterator[str]:
    """A sentence for each fault, which says what to do about the fault."""
    if reason := status.unavailable():
        yield _of_another_deployment() if reason == deployment.PART else _UNAVAILABLE[reason]
        return
    yield from _of_hosts()
    yield from _of_engines()
    yield from _of_restore()
    yield from _of_log()
    yield from _of_settings()


def _of_another_deployment() -> str:
    fault = deployment.find(connection).fault
    return f"{fault[0].upper()}{fault[1:]}. Nothing else was looked at."


def _of_hosts() -> Iterator[str]:
    for host in hosts.unreachable():
        since = wording.moment(host.unreachable_since)
        yield f"Host {host.name}: the runtime has not answered since {since} UTC; make sure that it runs."
    if hosts.is_disk_low():
        yield "The disk with the engines' volumes is nearly full: make room, or destroy engines."


def _of_engines() -> Iterator[str]:
    """Engines whose instance differs, per host, as the last sweep has stored them."""
    for host in Host.objects.order_by("name"):
        differing = Engine.objects.differing().filter(host=host).values_list("differs").annotate(Count("pk")).order_by()
        parts: Counter[str] = Counter()
        for differs, count in differing:
            parts.update(dict.fromkeys(differs.split(","), count))
        if parts:
            total, living = sum(count for _, count in differing), Engine.objects.living().filter(host=host).count()
            yield _differ(host.name, total, living, parts)


def _of_restore() -> Iterator[str]:
    """What a restore of the database leaves to a person, as the last sweep has stored it."""
    if count := UnregisteredEngine.objects.present().count():
        yield f"Engines of the runtime that are not registered: {count}. Adopt or remove each (`manage.py reconcile`, or admin)."
    if count := Engine.objects.without_volume().count():
        yield f"Engines that have no volume any more: {count}. Destroy each, or start it empty (`manage.py reconcile` lists)."


def _differ(host: str, total: int, living: int, parts: Counter[str]) -> str:
    named = ", ".join(f"{part} {count}" for part, count in parts.most_common())
    return (
        f"Host {host}: {total} of {living} engines are not made of what the settings and the registry say now ({named})."
        " Each is made anew at its next start; restart an engine to have this at once."
    )


def _of_log() -> Iterator[str]:
    if partitions.months_ahead() < partitions.AHEAD:
        yield "The audit log has too few months ahead: make sure that the process `keeper` runs."


def _of_settings() -> Iterator[str]:
    """What Django's checks and ours say: those of deployments only where this is one."""
    found = checks.run_checks(include_deployment_checks=settings.ENV.environment == "production", databases=["default"])
    for message in found:
        if message.is_serious(checks.WARNING) and not message.is_silenced():
            yield f"{message.msg} {message.hint or ''} ({message.id})".replace("  ", " ")
