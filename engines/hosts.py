"""Hosts: which one an engine goes to, its ports, and whether its runtime answers."""

from django.db import connection
from django.db.models import Q
from django.db.models.functions import Now

from common.settings import settings
from engines.errors import PortExhaustion
from engines.models import Host

NAME = "local"


def local() -> Host:
    """The one host there is for now, locked for this transaction, so that ports are given out one at a time."""
    host = Host.objects.select_for_update(no_key=True).filter(name=NAME).first()
    if host is None:
        Host.objects.bulk_create([Host(name=NAME)], ignore_conflicts=True)
        host = Host.objects.select_for_update(no_key=True).get(name=NAME)
    return host


def is_known(identity: str) -> bool:
    """Whether the runtime that answers is the one that answered last, without having been away."""
    return Host.objects.filter(name=NAME, identity=identity, unreachable_since=None).exists()


def mark_seen(identity: str) -> None:
    """The runtime with this identity answers, and what it should run is being brought back."""
    Host.objects.update_or_create(name=NAME, defaults={"identity": identity, "unreachable_since": None})


def mark_unreachable() -> None:
    """The runtime does not answer; remembers since when, also where it never has."""
    Host.objects.bulk_create([Host(name=NAME)], ignore_conflicts=True)
    Host.objects.filter(Q(unreachable_since=None), name=NAME).update(unreachable_since=Now())


def unreachable() -> list[Host]:
    """Hosts whose runtime does not answer: their engines are unknown."""
    return list(Host.objects.exclude(unreachable_since=None))


def pick_port(host: Host) -> int:
    """A free port of the locked host, at random: one just freed should not go to another user at once. Raises PortExhaustion."""
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
