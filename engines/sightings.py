"""What a list of the runtime's instances says of the engines that run by the registry.

One list per host and interval serves all engines. The registry is read before the runtime: an engine that has moved since then is
left alone, because its instance may be what it is through an operation. The list is younger than every answer that was noted
when the registry was read. As only an operation starts an instance, an instance that runs by the list ran at the answer, too, and
had its port then, so that nobody else can have answered.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import structlog

from audit.actors import SYSTEM
from engines import lifecycle
from engines.backends.base import Instance, Ref, State
from engines.models import Engine, Status

log = structlog.get_logger(__name__)
BATCH = 500  # engines whose rows are locked together, at most


@dataclass(frozen=True)
class Watched:
    """A running engine that is probed; `answered_at`: its last good answer without a proof, if noted."""

    engine_id: UUID
    mark: str  # of the valid incarnation
    seq: int
    port: int
    answered_at: datetime | None

    @property
    def ref(self) -> Ref:
        return Ref.parse(self.engine_id, self.mark)


def watched() -> list[Watched]:
    """The running engines that are probed, by the registry."""
    rows = Engine.objects.filter(status=Status.RUNNING, next_probe_at__isnull=False, port__isnull=False)
    found = rows.only("pk", "incarnation", "incarnation_mark", "seq", "port", "answered_at")
    return [Watched(each.pk, each.mark, each.seq, each.port or 0, each.answered_at) for each in found]


def compare(engines: Iterable[Watched], found: Mapping[UUID, Iterable[Instance]]) -> dict[Watched, str]:
    """The fault of each engine's instance, as a single word; empty for an instance that runs at the engine's port."""
    return {engine: _fault(engine, found.get(engine.engine_id, ())) for engine in engines}


def _fault(engine: Watched, instances: Iterable[Instance]) -> str:
    mine = [each for each in instances if each.ref == engine.ref]
    if any(each.serves(engine.ref, engine.port) for each in mine):
        return ""
    states = {each.state for each in mine}
    if State.RUNNING in states:
        return "instance_elsewhere"
    return "instance_ended" if State.EXITED in states else "instance_missing"


def confirm(faults: Mapping[Watched, str]) -> None:
    """Count the noted answers of the engines whose instances run at their ports."""
    findings = [
        lifecycle.Finding(engine.engine_id, engine.seq, True, "ok", engine.answered_at)
        for engine, fault in faults.items()
        if not fault and engine.answered_at is not None
    ]
    for start in range(0, len(findings), BATCH):
        lifecycle.count(findings[start : start + BATCH])


def fail(faults: Mapping[Watched, str]) -> int:
    """Mark the engines as failed whose instances do not run at their ports; returns how many. Automatic restarts follow."""
    return sum(_fail(engine, fault) for engine, fault in faults.items() if fault)


def _fail(engine: Watched, fault: str) -> bool:
    may_run = fault == "instance_elsewhere"
    is_failed = lifecycle.mark_failed(engine.engine_id, engine.seq, by=SYSTEM, why={"cause": fault}, may_run=may_run)
    if is_failed:
        log.warning("engine_failed", engine_id=str(engine.engine_id), cause=fault)
    return is_failed
