"""Hosts: the host of a new engine, the ports of a host, and whether its runtime answers."""

from datetime import timedelta

from django.db import connection
from django.db.models import Q
from django.db.models.functions import Coalesce, Now

from common.settings import settings
from engines.errors import PortExhaustion
from engines.models import Host

NAME = "local"


def local() -> Host:
    """The only host for now, locked for the transaction: two transactions never give out ports at the same time."""
    host = Host.objects.select_for_update(no_key=True).filter(name=NAME).first()
    if host is None:
        Host.objects.bulk_create([Host(name=NAME)], ignore_conflicts=True)
        host = Host.objects.select_for_update(no_key=True).get(name=NAME)
    return host


def is_known(identity: str) -> bool:
    """Whether the runtime had the same identity when it last answered, and has not been unreachable since."""
    return Host.objects.filter(name=NAME, identity=identity, unreachable_since=None).exists()


def was_seen() -> bool:
    """Whether the runtime has ever answered."""
    return Host.objects.filter(name=NAME).exclude(identity="").exists()


def mark_seen(identity: str) -> None:
    """Note the identity of the runtime, which answers; the needed restarts of its engines are open already."""
    Host.objects.update_or_create(name=NAME, defaults={"identity": identity, "unreachable_since": None})


def mark_unreachable() -> None:
    """Note since when the runtime has not answered, even if it never answered before."""
    Host.objects.bulk_create([Host(name=NAME)], ignore_conflicts=True)
    Host.objects.filter(Q(unreachable_since=None), name=NAME).update(unreachable_since=Now())


def unreachable() -> list[Host]:
    """Hosts whose runtime does not answer: the state of their engines is unknown."""
    return list(Host.objects.exclude(unreachable_since=None))


def note_disk(total_mb: int, free_mb: int, *, is_low: bool) -> None:
    """Note what was measured of the disk with the engines' volumes, and since when it has too little left."""
    Host.objects.bulk_create([Host(name=NAME)], ignore_conflicts=True)
    since = Coalesce("disk_low_since", Now()) if is_low else None
    measured = {"disk_mb": total_mb, "disk_free_mb": free_mb, "disk_measured_at": Now(), "disk_low_since": since}
    Host.objects.filter(name=NAME).update(**measured)


def is_disk_due(interval_s: float) -> bool:
    """Whether the host's disk was not measured within the interval."""
    recent = Host.objects.filter(name=NAME, disk_measured_at__gt=Now() - timedelta(seconds=interval_s))
    return not recent.exists()


def is_disk_low() -> bool:
    """Whether a host's disk has too little left, by its last measurement."""
    return Host.objects.exclude(disk_low_since=None).exists()


def pick_port(host: Host) -> int:
    """A random free port of the locked host. Raises PortExhaustion.

    Random, because a port freed a moment ago should not go to a different user at once.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT port FROM generate_series(%s::int, %s::int) port WHERE NOT EXISTS (SELECT 1 FROM engines_engine e"
            " WHERE e.host_id = %s AND e.port = port.port AND e.destroyed_at IS NULL) ORDER BY random() LIMIT 1",
            [settings.ENV.port_min, settings.ENV.port_max, host.pk],
        )
        row = cursor.fetchone()
    if row is None:
        raise PortExhaustion(
            f"No port from {settings.ENV.port_min} to {settings.ENV.port_max} is free; destroy an engine or widen the range."
        )
    return int(row[0])
