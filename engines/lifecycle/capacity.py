"""The room of a host: whether a further engine may run on the host, and how much room an engine takes."""

from uuid import UUID

from django.db import connection

from common.settings import settings
from engines import hosts
from engines.errors import CapacityExhausted
from engines.models import IS_OPEN, Engine
from engines.transitions import OCCUPYING, STARTS
from policy import decisions, overrides, rules
from policy.decisions import Decision
from policy.models import Product

# `host`: the host's name; `but`: an engine to leave out. `transitions` has the states (`occupying`) and kinds (`starts`) that
# hold a place. Engines are read without a lock: the lock on the host keeps out any other start.
_USED = f"""
SELECT count(*) FILTER (WHERE up),                           -- host_max_engines: engines that hold a place
       coalesce(sum(memory_mb) FILTER (WHERE up), 0),        -- host_memory_mb: the memory of engines that hold a place
       coalesce(sum(greatest(disk_mb, disk_used_mb)), 0)     -- host_disk_mb: all living engines, as volumes outlive a stop
FROM (
    SELECT disk_mb, disk_used_mb,                            -- a volume may take more than it may; greatest() ignores a NULL
        -- A rotation to an incarnation with more memory counts with the larger memory from its request on.
        greatest(memory_mb, (params ->> 'memory_mb')::int) AS memory_mb,
        status = ANY(%(occupying)s)                          -- the instance runs, is about to run, or may still run
            OR next_restart_at IS NOT NULL                   -- a restart is scheduled and will need the room again
            OR (status = 'failed' AND may_run)               -- the engine failed, but its instance may still run
            OR coalesce(kind = ANY(%(starts)s), false) AS up -- a start is under way; kind is NULL without an open operation
    -- At most one operation per engine is open: the join never doubles an engine.
    FROM engines_engine e LEFT JOIN engines_operation o ON o.engine_id = e.id AND {IS_OPEN}
    WHERE host_id = (SELECT id FROM engines_host WHERE name = %(host)s) AND destroyed_at IS NULL
        AND e.id IS DISTINCT FROM %(but)s) counted           -- but is NULL when no engine is left out
"""


def lock_host() -> None:
    """Lock the host until the transaction ends, if it has a ceiling: two starts cannot take the same room.

    No engine may be locked before the host.
    """
    if any(_ceilings().values()):
        hosts.local()


def decide_room(memory_mb: int, disk_mb: int, *, but: UUID | None = None) -> list[Decision]:
    """The decision of every ceiling of the host on a further running engine, valid while the host is locked.

    `disk_mb` is 0 for an engine whose volume exists. `but` is the engine to run, if it exists already: the room held by the
    engine is not counted against it.
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
    """The ceilings of the host by setting, 0 for none, in the order of the columns of `_USED`."""
    return {rule: getattr(settings.ENV, rule) for rule in ("host_max_engines", "host_memory_mb", "host_disk_mb")}


def _decide(rule: str, limit: int, before: int, more: int) -> Decision:
    refusal = CapacityExhausted(rule, limit, before + more) if before + more > limit else None
    return Decision(rule, limit, before + more, max(0, limit - before), refusal)


def memory_mb(product: Product) -> int:
    """The memory counted for a new engine of the product."""
    return int(rules.lowered(overrides.in_force(product), "memory_mb", settings.ENV.engine_memory_mb))


def disk_mb(product: Product) -> int:
    """The disk space in MB that the volume of an engine of the product may take now: by its policy, otherwise by the setting.

    Unlike memory, the policy may raise the setting: an override is the way to let an engine start and remove data.
    """
    return int(overrides.in_force(product).get("disk_mb", settings.ENV.engine_disk_mb))


def decide_disk(engine: Engine) -> Decision:
    """The decision on a start of the engine, by the last measurement of its volume."""
    return decisions.disk_mb(disk_mb(engine.product), engine.disk_used_mb)


def next_memory_mb(engine: Engine) -> int:
    """The memory of the engine's next incarnation: by its policy, or as much as now if the host has no room for more."""
    wanted = memory_mb(engine.product)
    if wanted <= engine.memory_mb:
        return wanted
    lock_host()
    return wanted if all(decided.allowed for decided in decide_room(wanted, 0, but=engine.pk)) else engine.memory_mb
