"""Hosts: which one an engine goes to, and its ports."""

from django.conf import settings
from django.db import connection, transaction

from engines import operations
from engines.errors import PortExhaustion
from engines.models import Engine, Host
from engines.operations import Lease


def local() -> Host:
    """The one host there is for now, locked for this transaction, so that ports are given out one at a time."""
    host = Host.objects.select_for_update(no_key=True).filter(name="local").first()
    if host is None:
        Host.objects.bulk_create([Host(name="local")], ignore_conflicts=True)
        host = Host.objects.select_for_update(no_key=True).get(name="local")
    return host


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


@transaction.atomic
def change_port(lease: Lease, engine: Engine) -> int:
    """Give the engine another port, because something else has taken its own. Raises PortExhaustion, LeaseLost."""
    host = local()
    operations.check(lease)
    port = pick_port(host)
    Engine.objects.filter(pk=engine.pk).update(port=port)
    return port
