"""The room of a host: whether one more engine may run there, and what an engine counts for."""

from uuid import UUID

from django.db import connection

from common.settings import settings
from engines import hosts
from engines.errors import CapacityExhausted
from engines.models import IS_OPEN, Engine
from engines.transitions import OCCUPYING, STARTS
from policy import overrides, rules
from policy.decisions import Decision
from policy.models import Product

# $1: the host's name, $2: an engine that is left out. For what counts as up, `transitions` has the states and the kinds.
_USED = f"""
SELECT count(*) FILTER (WHERE up),                           -- engines that hold a place
       coalesce(sum(memory_mb) FILTER (WHERE up), 0),        -- the memory that they count for
       coalesce(sum(disk_mb), 0)                             -- the disk of every living engine: its volume stays while it sleeps
FROM (
    SELECT disk_mb,
        -- A rotation to a larger incarnation counts for the larger one from the moment it is asked for.
        greatest(memory_mb, (params ->> 'memory_mb')::int) AS memory_mb,
        status = ANY(%(occupying)s)                          -- its instance runs, is about to, or may still run
            OR next_restart_at IS NOT NULL                   -- a restart is scheduled and will need the room again
            OR (status = 'failed' AND may_run)               -- the registry gave up on it, and the instance may run on
            OR coalesce(kind = ANY(%(starts)s), false) AS up -- a start is under way
    FROM engines_engine e LEFT JOIN engines_operation o ON o.engine_id = e.id AND {IS_OPEN}
    WHERE host_id = (SELECT id FROM engines_host WHERE name = %(host)s) AND destroyed_at IS NULL
        AND e.id IS DISTINCT FROM %(but)s) counted
"""


def lock_host() -> None:
    """Lock the host until the transaction ends, if it has a ceiling: two starts cannot take the same room.

    Lock no engine before.
    """
    if any(_ceilings().values()):
        hosts.local()


def decide_room(memory_mb: int, disk_mb: int, *, but: UUID | None = None) -> list[Decision]:
    """What each ceiling of the host says of one more running engine of this size. It holds for as long as the host is locked.

    `disk_mb` is 0 for an engine that has its volume. `but` is the engine that the room is for, when it exists: the room that it
    holds already is not counted against it.
    """
    ceilings = _ceilings()
    if not any(ceilings.values()):
        return []
    with connection.cursor() as cursor:
        cursor.execute(_USED, {"host": hosts.NAME, "but": but, "occupying": list(OCCUPYING), "starts": list(STARTS)})
        used = cursor.fetchone()
    asked = zip(ceilings.items(), used, (1, memory_mb, disk_mb), strict=True)
    return [_decide(rule, limit, int(before), more) for (rule, limit), before, more in asked if limit and more]


def _ceilings() -> dict[str, int]:
    """The host's, 0 for none, in the order of what `_USED` selects."""
    return {rule: getattr(settings.ENV, rule) for rule in ("host_max_engines", "host_memory_mb", "host_disk_mb")}


def _decide(rule: str, limit: int, before: int, more: int) -> Decision:
    refusal = CapacityExhausted(rule, limit, before + more) if before + more > limit else None
    return Decision(rule, limit, before + more, max(0, limit - before), refusal)


def memory_mb(product: Product) -> int:
    """Memory that a new engine of the product is counted with."""
    return int(rules.lowered(overrides.in_force(product), "memory_mb", settings.ENV.engine_memory_mb))


def next_memory_mb(engine: Engine) -> int:
    """Memory of the engine's next incarnation: the policy's, or as much as it has now where the host has no room for more."""
    wanted = memory_mb(engine.product)
    if wanted <= engine.memory_mb:
        return wanted
    lock_host()
    return wanted if all(decided.allowed for decided in decide_room(wanted, 0, but=engine.pk)) else engine.memory_mb
