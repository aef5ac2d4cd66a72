"""Hosts: which one an engine goes to, its ports, and whether its runtime answers."""

from uuid import UUID

from django.db import connection, transaction
from django.db.models import Q
from django.db.models.functions import Now

from common.settings import settings
from engines import operations
from engines.errors import CapacityExhausted, PortExhaustion
from engines.models import Engine, Host
from engines.operations import Lease
from policy import decisions
from policy.decisions import Decision

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


# What runs, is about to, or may still do so: a tear-down lasts as long as its grace, and of a failed engine it is written down.
_USED = """
SELECT count(*) FILTER (WHERE up), coalesce(sum(memory_mb) FILTER (WHERE up), 0), coalesce(sum(disk_mb), 0)
FROM (SELECT disk_mb, greatest(memory_mb, (params ->> 'memory_mb')::int) AS memory_mb,
        status IN ('running', 'provisioning', 'destroying') OR next_restart_at IS NOT NULL OR (status = 'failed' AND may_run)
        OR coalesce(kind IN ('provision', 'start', 'wake', 'restart'), false) AS up
    FROM engines_engine e LEFT JOIN engines_operation o ON o.engine_id = e.id AND o.state IN ('pending', 'running')
    WHERE host_id = (SELECT id FROM engines_host WHERE name = %s) AND destroyed_at IS NULL
        AND e.id IS DISTINCT FROM %s) counted
"""


def check_room(memory_mb: int, disk_mb: int, *, but: UUID | None = None) -> None:
    """Raise CapacityExhausted unless the host has room for one more running engine of this size.

    `but`: the engine that it is for, when there is one: what that holds already is not counted against it. The host is locked
    until the transaction ends, so that two starts cannot take the same room; take no engine's lock before.
    """
    if any(_ceilings().values()):
        local()
        decisions.check(decide_room(memory_mb, disk_mb, but=but))


def decide_room(memory_mb: int, disk_mb: int, *, but: UUID | None = None) -> list[Decision]:
    """What each ceiling of the host says of one more running engine of this size; it holds for as long as the host is locked.

    Engines that start, are about to be restarted, or are being torn down count as running, and failed ones whose instance may
    still run. `disk_mb` is 0 for an engine that has its volume.
    """
    ceilings = _ceilings()
    if not any(ceilings.values()):
        return []
    with connection.cursor() as cursor:
        cursor.execute(_USED, [NAME, but])
        used = cursor.fetchone()
    asked = zip(ceilings.items(), used, (1, memory_mb, disk_mb), strict=True)
    return [_decide(rule, limit, int(before), more) for (rule, limit), before, more in asked if limit and more]


def _ceilings() -> dict[str, int]:
    """The host's, 0 for none, in the order of what `_USED` selects."""
    return {rule: getattr(settings.ENV, rule) for rule in ("host_max_engines", "host_memory_mb", "host_disk_mb")}


def _decide(rule: str, limit: int, before: int, more: int) -> Decision:
    refusal = CapacityExhausted(rule, limit, before + more) if before + more > limit else None
    return Decision(rule, limit, before + more, max(0, limit - before), refusal)


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
